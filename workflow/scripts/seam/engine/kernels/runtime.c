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

/* Work falls into phases, one after another; the items of a phase can run at once. Threads claim items one by one, and
   only once the phase before is done. So a thread that the system does not run holds nothing that others wait for: on
   a busy machine the others do its share. `state` holds all that a claim needs: 32 bits phase, 16 items, 16 claimed. */
typedef struct {
  int threads;             /* with the caller's */
  pthread_t *workers;
  pthread_mutex_t busy;    /* held by the call that uses the workers */
  pthread_mutex_t lock;    /* guards sleeping */
  pthread_cond_t wake;
  _Atomic uint64_t state;
  atomic_int done;         /* items of this phase */
  atomic_int running, stop;
  pid_t process;
  uint32_t first;          /* phase of the job; this and the job are read by those who have claimed an item only */
  Job job;
} Pool;

typedef struct {
  Pool *pool;
  int thread;
} Worker;

typedef struct {           /* what the items of a phase do */
  const Stage *stage;
  const float *from;       /* the stage's input */
  int block, op;           /* op -1: an item is a block of images, all operations; else a share of one operation */
  int items;               /* 0: the job has ended */
} Phase;

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

/* The phase `number` of a job. While every thread can have a block of images, each works on its own, since they then
   wait for each other once per stage; the blocks that remain are shared, operation by operation. */
static Phase find_phase(const Job *job, int threads, uint32_t number) {
  const float *from = job->input;
  for (int s = 0; s < job->count; s++) {
    const Stage *stage = job->stages + s;
    const int blocks = (job->images + stage->images - 1) / stage->images;
    const int whole = blocks / threads * threads;
    const uint32_t shared = (uint32_t)(blocks - whole) * (uint32_t)stage->count;
    if (whole) {
      if (!number) return (Phase){stage, from, 0, -1, whole};
      number--;
    }
    if (number < shared)
      return (Phase){stage, from, whole + (int)number / stage->count, (int)number % stage->count, threads};
    number -= shared;
    if (stage->buffer >= 0) from = job->shared + stage->buffer;
  }
  return (Phase){0, 0, 0, 0, 0};
}

static void run_operation(const Job *job, const Phase *phase, int block, int op, int workspace, int share, int shares) {
  const Stage *stage = phase->stage;
  const int first = block * stage->images;
  const int images = job->images - first < stage->images ? job->images - first : stage->images;
  const Op *operation = stage->ops + op;
  float *out = (stage->buffer < 0 ? job->output : job->shared + stage->buffer) + first * stage->output;
  float *in = (float *)phase->from + first * stage->input; /* PACK only reads it */
  seam_operation(operation, job->workspaces + workspace * job->size, operation->kind == UNPACK ? out : in, images, share,
                 shares);
}

static void run_item(const Job *job, const Phase *phase, int item, int thread, int threads) {
  if (phase->op >= 0) run_operation(job, phase, phase->block, phase->op, 0, item, threads);
  else
    for (int op = 0; op < phase->stage->count; op++) run_operation(job, phase, item, op, thread, 0, 1);
}

/* Claims an item of the current phase and runs it. Whoever ends the last one begins the next phase. Returns 0 if there
   was none to claim. */
static int run_some(Pool *pool, int thread) {
  uint64_t state = atomic_load(&pool->state);
  const int items = (int)(state >> 16 & 0xffff), item = (int)(state & 0xffff);
  if (item >= items || !atomic_compare_exchange_strong(&pool->state, &state, state + 1)) return 0;
  const uint32_t number = (uint32_t)(state >> 32);
  const Phase phase = find_phase(&pool->job, pool->threads, number - pool->first);
  run_item(&pool->job, &phase, item, thread, pool->threads);
  if (atomic_fetch_add(&pool->done, 1) + 1 == items) {
    const Phase next = find_phase(&pool->job, pool->threads, number + 1 - pool->first);
    atomic_store(&pool->done, 0);
    atomic_store(&pool->state, (uint64_t)(number + 1) << 32 | (uint64_t)next.items << 16);
  }
  return 1;
}

static void *work(void *argument) {
  const Worker worker = *(Worker *)argument;
  Pool *pool = worker.pool;
  free(argument);
  for (int round = 0; !atomic_load(&pool->stop); round++) {
    if (run_some(pool, worker.thread)) round = 0;
    else if (atomic_load(&pool->running)) pause_a_little(round < 10000 ? round : (round = 10000));
    else if (round < 2000) pause_a_little(0);
    else {
      pthread_mutex_lock(&pool->lock);
      while (!atomic_load(&pool->running) && !atomic_load(&pool->stop)) pthread_cond_wait(&pool->wake, &pool->lock);
      pthread_mutex_unlock(&pool->lock);
      round = 0;
    }
  }
  return 0;
}

static void announce(Pool *pool, atomic_int *what) {
  pthread_mutex_lock(&pool->lock);
  atomic_store(what, 1);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

void seam_pool_delete(Pool *pool) {
  if (!pool) return;
  if (getpid() == pool->process) { /* after a fork the workers exist in the parent only */
    announce(pool, &pool->stop);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i], 0);
  }
  free(pool->workers);
  free(pool);
}

/* A pool of `threads` threads, the caller's among them. Null: the system does not give as many. */
Pool *seam_pool_new(int threads) {
  Pool *pool = threads < 1 ? 0 : calloc(1, sizeof *pool);
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
  const int wanted = threads;
  for (pool->threads = 1; pool->threads < wanted; pool->threads++) {
    Worker *worker = malloc(sizeof *worker);
    if (!worker) break;
    *worker = (Worker){pool, pool->threads};
    if (pthread_create(pool->workers + pool->threads, 0, work, worker)) {
      free(worker);
      break;
    }
  }
  if (pool->threads < wanted) {
    seam_pool_delete(pool);
    return 0;
  }
  return pool;
}

/* Runs the stages on `images` images. A second call at the same time, or one in a forked child, runs in the caller's
   thread alone: the sums of an output are formed in the same order by any number of threads. */
void seam_run(Pool *pool, const Stage *stages, int count, int images, float *workspaces, int64_t size, float *shared,
              const float *input, float *output) {
  const Job job = {stages, count, images, workspaces, size, shared, input, output};
  if (pool->threads == 1 || getpid() != pool->process || pthread_mutex_trylock(&pool->busy)) {
    for (uint32_t number = 0;; number++) {
      const Phase phase = find_phase(&job, 1, number);
      if (!phase.items) return;
      for (int item = 0; item < phase.items; item++) run_item(&job, &phase, item, 0, 1);
    }
  }
  pool->job = job;
  pool->first = (uint32_t)(atomic_load(&pool->state) >> 32) + 1;
  const uint64_t items = (uint64_t)find_phase(&job, pool->threads, 0).items;
  atomic_store(&pool->state, (uint64_t)pool->first << 32 | items << 16);
  announce(pool, &pool->running);
  for (int round = 0; atomic_load(&pool->state) >> 16 & 0xffff; round++)
    if (run_some(pool, 0)) round = 0;
    else pause_a_little(round < 10000 ? round : (round = 10000));
  atomic_store(&pool->running, 0);
  pthread_mutex_unlock(&pool->busy);
}

/* The size of a structure, by which a caller recognises a library of another version. */
int seam_sizes(int which) { return which ? (int)sizeof(Stage) : (int)sizeof(Op); }
