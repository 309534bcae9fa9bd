/* A pool of threads that runs stages of operations. Independent of the instruction set. */
#define _GNU_SOURCE
#include "seam.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

typedef struct {
  const Stage *stages;
  int count, images;       /* stages; images of this call */
  float *workspaces;       /* one per thread, `size` floats each */
  int64_t size;
  float *shared;           /* what stages hand to each other, of all images */
  const float *input;
  float *output;
} Job;

typedef struct {
  int threads;             /* with the caller's */
  pthread_t *workers;
  pthread_mutex_t busy;    /* held by the call that uses the workers */
  pthread_mutex_t lock;    /* guards `generation` and `stop` while workers sleep */
  pthread_cond_t wake;
  atomic_uint generation;  /* raised by each job */
  atomic_int stop, running;
  atomic_int arrived;      /* of the barrier */
  atomic_uint phase;
  pid_t process;
  const Job *job;
} Pool;

typedef struct {
  Pool *pool;
  int thread;
} Worker;

static void pause_a_little(int round) {
  if (round > 2000) {
    sched_yield();
    return;
  }
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* Waits for all threads of the pool. */
static void barrier(Pool *pool, int threads) {
  if (threads == 1) return;
  const unsigned phase = atomic_load(&pool->phase);
  if (atomic_fetch_add(&pool->arrived, 1) + 1 == threads) {
    atomic_store(&pool->arrived, 0);
    atomic_store(&pool->phase, phase + 1);
  } else
    for (int round = 0; atomic_load(&pool->phase) == phase; round += round < 10000) pause_a_little(round);
}

/* Runs a stage's operations on block `index` of the images: by one thread, or by all together (threads > 1). */
static void run_block(Pool *pool, const Job *job, const Stage *stage, const float *from, int index, int workspace,
                      int thread, int threads) {
  const int first = index * stage->images;
  const int images = job->images - first < stage->images ? job->images - first : stage->images;
  float *in = (float *)from + first * stage->input; /* PACK only reads it */
  float *out = (stage->buffer < 0 ? job->output : job->shared + stage->buffer) + first * stage->output;
  for (int i = 0; i < stage->count; i++) {
    const Op *op = stage->ops + i;
    seam_operation(op, job->workspaces + workspace * job->size, op->kind == UNPACK ? out : in, images, thread, threads);
    barrier(pool, threads);
  }
}

/* One thread's part of a job. While every thread can have a block of images, each works on its own, since they then
   wait for each other once per stage; the blocks that remain are shared, operation by operation. */
static void run_job(Pool *pool, const Job *job, int thread, int threads) {
  const float *from = job->input;
  for (int s = 0; s < job->count; s++) {
    const Stage *stage = job->stages + s;
    const int blocks = (job->images + stage->images - 1) / stage->images;
    const int apart = blocks / threads * threads;
    for (int index = thread; index < apart; index += threads)
      run_block(pool, job, stage, from, index, thread, 0, 1);
    barrier(pool, threads);
    for (int index = apart; index < blocks; index++) run_block(pool, job, stage, from, index, 0, thread, threads);
    if (stage->buffer >= 0) from = job->shared + stage->buffer;
  }
}

static void *work(void *argument) {
  Worker worker = *(Worker *)argument;
  Pool *pool = worker.pool;
  free(argument);
  for (unsigned seen = 0;;) {
    for (int round = 0; round < 2000 && atomic_load(&pool->generation) == seen; round++) pause_a_little(0);
    if (atomic_load(&pool->generation) == seen) {
      pthread_mutex_lock(&pool->lock);
      while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
      pthread_mutex_unlock(&pool->lock);
    }
    seen++;
    if (atomic_load(&pool->stop)) return 0;
    run_job(pool, pool->job, worker.thread, pool->threads);
    atomic_fetch_sub(&pool->running, 1);
  }
}

static void announce(Pool *pool) {
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->generation, 1);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

void seam_pool_delete(Pool *pool) {
  if (!pool) return;
  if (getpid() == pool->process) { /* after a fork the workers exist in the parent only */
    atomic_store(&pool->stop, 1);
    announce(pool);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i], 0);
  }
  free(pool->workers);
  free(pool);
}

/* A pool of `threads` threads, the caller's among them; of fewer where the system gives no more. Null: no memory. */
Pool *seam_pool_new(int threads) {
  Pool *pool = calloc(1, sizeof *pool);
  if (!pool) return 0;
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  if (!pool->workers) {
    free(pool);
    return 0;
  }
  pthread_mutex_init(&pool->busy, 0);
  pthread_mutex_init(&pool->lock, 0);
  pthread_cond_init(&pool->wake, 0);
  pool->process = getpid();
  for (pool->threads = 1; pool->threads < threads; pool->threads++) {
    Worker *worker = malloc(sizeof *worker);
    if (!worker) break;
    *worker = (Worker){pool, pool->threads};
    if (pthread_create(pool->workers + pool->threads, 0, work, worker)) {
      free(worker);
      break;
    }
  }
  return pool;
}

/* Runs the stages on `images` images. A second call at the same time, or one in a forked child, runs in the caller's
   thread alone: the sums of an output are formed in the same order by any number of threads. */
void seam_run(Pool *pool, const Stage *stages, int count, int images, float *workspaces, int64_t size, float *shared,
              const float *input, float *output) {
  const Job job = {stages, count, images, workspaces, size, shared, input, output};
  if (pool->threads == 1 || getpid() != pool->process || pthread_mutex_trylock(&pool->busy)) {
    run_job(pool, &job, 0, 1);
    return;
  }
  pool->job = &job;
  atomic_store(&pool->running, pool->threads - 1);
  announce(pool);
  run_job(pool, &job, 0, pool->threads);
  for (int round = 0; atomic_load(&pool->running); round += round < 10000) pause_a_little(round);
  pthread_mutex_unlock(&pool->busy);
}

/* Writes how many seconds each of a stage's operations takes on one block of images: the least of `repeats` times.
   `picture` is what PACK reads and UNPACK writes. */
void seam_time(const Stage *stage, float *workspace, float *picture, int repeats, double *seconds) {
  for (int repeat = 0; repeat < repeats; repeat++)
    for (int i = 0; i < stage->count; i++) {
      struct timespec begin, end;
      clock_gettime(CLOCK_MONOTONIC, &begin);
      seam_operation(stage->ops + i, workspace, picture, stage->images, 0, 1);
      clock_gettime(CLOCK_MONOTONIC, &end);
      const double taken = (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
      if (!repeat || taken < seconds[i]) seconds[i] = taken;
    }
}

/* The size of a structure, by which a caller recognises a library of another version. */
int seam_sizes(int which) { return which ? (int)sizeof(Stage) : (int)sizeof(Op); }
