/* Every operation, for one vector length. Compiled once per instruction set, with -DLANES=... */
#include "seam.h"

#include <math.h>
#include <stddef.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), may_alias));

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

#if LANES == 16
static const ivec lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
static const ivec lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7};
#else
static const ivec lane_numbers = {0, 1, 2, 3};
#endif

#define HIDE(pointer) __asm__("" : "+r"(pointer))

INLINE vec splat(float x) {
#if LANES == 16
  return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif LANES == 8
  return (vec){x, x, x, x, x, x, x, x};
#else
  return (vec){x, x, x, x};
#endif
}

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* The larger or smaller of two values. If x is not a number, neither is the result. The processor's own instruction
   takes the place of a comparison, a mask and a selection: a sparse layer gains 3 percent. */
#if LANES == 16 && defined(__AVX512F__)
INLINE vec at_least(vec x, vec low) { return (vec)_mm512_max_ps((__m512)low, (__m512)x); }
INLINE vec at_most(vec x, vec high) { return (vec)_mm512_min_ps((__m512)high, (__m512)x); }
#elif LANES == 8 && defined(__AVX__)
INLINE vec at_least(vec x, vec low) { return (vec)_mm256_max_ps((__m256)low, (__m256)x); }
INLINE vec at_most(vec x, vec high) { return (vec)_mm256_min_ps((__m256)high, (__m256)x); }
#elif LANES == 4 && defined(__SSE2__)
INLINE vec at_least(vec x, vec low) { return (vec)_mm_max_ps((__m128)low, (__m128)x); }
INLINE vec at_most(vec x, vec high) { return (vec)_mm_min_ps((__m128)high, (__m128)x); }
#elif LANES == 4 && defined(__ARM_NEON)
INLINE vec at_least(vec x, vec low) { return (vec)vmaxq_f32((float32x4_t)low, (float32x4_t)x); }
INLINE vec at_most(vec x, vec high) { return (vec)vminq_f32((float32x4_t)high, (float32x4_t)x); }
#else
INLINE vec at_least(vec x, vec low) { return choose(x < low, low, x); }
INLINE vec at_most(vec x, vec high) { return choose(x > high, high, x); }
#endif

/* Lane i takes lane source[i]. Clang has no general shuffle by a variable, and makes loads of a loop: without its
   processor's instruction a network of one image takes up to 1.4 times as long. */
#if defined(__clang__) && LANES == 16 && defined(__AVX512F__)
INLINE vec permuted(vec x, ivec source) { return (vec)_mm512_permutexvar_ps((__m512i)source, (__m512)x); }
#elif defined(__clang__) && LANES == 8 && defined(__AVX2__)
INLINE vec permuted(vec x, ivec source) { return (vec)_mm256_permutevar8x32_ps((__m256)x, (__m256i)source); }
#elif defined(__clang__)
INLINE vec permuted(vec x, ivec source) {
  vec y;
  for (int i = 0; i < LANES; i++) y[i] = x[source[i] & (LANES - 1)];
  return y;
}
#else
INLINE vec permuted(vec x, ivec source) { return __builtin_shuffle(x, source); }
#endif

/* e^x within 2 units in the last place: 2^n times a polynomial on -ln(2)/2 .. ln(2)/2 (Taylor's, to the 7th power).
   Above 88 it is infinite, which is a little early, and NaN stays NaN, whatever its bits. */
INLINE vec exponential(vec given) {
  const vec x = at_least(at_most(given, splat(88.0f)), splat(-87.0f));
  const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
  vec n = x * splat(1.44269504f) + magic;
  ivec exponent = (ivec)n << 23;
  n -= magic;
  vec r = x - n * splat(0.693359375f);
  r -= n * splat(-2.12194440e-4f);
  vec p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  const vec result = choose(given > splat(88.0f), splat(__builtin_inff()), (vec)((ivec)p + exponent));
  return choose(given == given, result, given);
}

INLINE vec sigmoid(vec x) { return splat(1.0f) / (splat(1.0f) + exponential(-x)); }

INLINE vec gate(const Op *op, vec x) {
  return at_most(at_least(splat(op->alpha) * x + splat(op->beta), splat(0)), splat(1));
}

INLINE vec activated(const Op *op, vec x) {
  switch (op->activation) {
    case SIGMOID: return sigmoid(x);
    case SILU: return x * sigmoid(x);
    case HARD_SIGMOID: return gate(op, x);
    case HARD_SWISH: return x * gate(op, x);
    case LEAKY: return choose(x < splat(0), splat(op->alpha) * x, x);
    default: return at_most(at_least(x, splat(op->low)), splat(op->high));
  }
}

INLINE vec *pixels(float *workspace, const Map *map, int channel) {
  return (vec *)(workspace + map->start) + (ptrdiff_t)channel * map->plane;
}

/* Applies the activation to a channel if the kernel has not, then writes the border: both while the channel is in the
   cache. A border is written by table, since one permutation of lanes serves any grid, padding and ragged edge. */
static void finish(const Op *op, float *workspace, int channel) {
  vec *out = pixels(workspace, &op->out, channel);
  if (op->kind == CONVOLVE && op->activation != CLIP)
    for (int y = 0; y < op->height; y++)
      for (int x = 0; x < op->width; x++) out[y * op->out.row + x] = activated(op, out[y * op->out.row + x]);
  const vec fill = splat(op->fill);
  for (const Border *b = op->border, *end = b + op->borders; b < end; b++)
    if (b->pattern < 0)
      out[b->to] = fill;
    else {
      const Lanes *lanes = op->lanes + b->pattern;
      out[b->to] = choose(*(const ivec *)lanes->mask, permuted(out[b->from], *(const ivec *)lanes->source), fill);
    }
}

/* One block of RY x RX output pixels of `outputs` channels. Each entry of the list costs one broadcast per channel and
   one multiply-add per pixel and channel, with the pixel as an aligned memory operand. Chains of dependent
   multiply-adds bound small blocks (latency 4, two a cycle), so that these sum alternate entries apart. */
INLINE void block(const int outputs, const int RY, const int RX, const int SX, const Op *op, const char *in, vec *out,
                  const vec *other, int group, int part) {
  const int chains = RY * RX * outputs >= 8 ? 1 : RY * RX * outputs >= 4 ? 2 : RY * RX * outputs >= 2 ? 4 : 8;
  const ptrdiff_t row = (ptrdiff_t)op->in.row * op->step_y * (ptrdiff_t)sizeof(vec);
  const ptrdiff_t column = (SX ? SX : op->step_x) * (ptrdiff_t)sizeof(vec);
  const int32_t *first = op->first + part * op->groups + group;
  const int32_t *restrict offset = op->offset;
  const float *restrict value = op->value;
  const int channel = group * outputs, kept = op->channels - channel;
  vec sum[32]; /* an array of fixed size: a variable one would stay in memory */
#define SUM(c, o, y, x) sum[(((c) * outputs + (o)) * RY + (y)) * RX + (x)]
  UNROLL for (int c = 0; c < chains; c++)
    UNROLL for (int o = 0; o < outputs; o++)
      UNROLL for (int y = 0; y < RY; y++)
        UNROLL for (int x = 0; x < RX; x++) {
          if (c) SUM(c, o, y, x) = splat(0);
          else if (!part) SUM(c, o, y, x) = splat(op->bias[channel + o]);
          else SUM(c, o, y, x) = o < kept ? out[o * op->out.plane + y * op->out.row + x] : splat(0);
        }
  ptrdiff_t k = first[0];
  const ptrdiff_t end = first[1];
  if (chains > 1)
    for (; k + chains <= end; k += chains)
      UNROLL for (int c = 0; c < chains; c++)
        UNROLL for (int y = 0; y < RY; y++)
          UNROLL for (int x = 0; x < RX; x++) {
            const vec pixel = *(const vec *)(in + offset[k + c] + y * row + x * column);
            UNROLL for (int o = 0; o < outputs; o++) SUM(c, o, y, x) += splat(value[(k + c) * outputs + o]) * pixel;
          }
  for (; k < end; k++) {
    const char *window = in + offset[k];
    vec weight[8];
    UNROLL for (int o = 0; o < outputs; o++) weight[o] = splat(value[k * outputs + o]);
    UNROLL for (int y = 0; y < RY; y++) {
      UNROLL for (int x = 0; x < RX; x++) {
        const vec pixel = *(const vec *)(window + x * column);
        UNROLL for (int o = 0; o < outputs; o++) SUM(0, o, y, x) += weight[o] * pixel;
      }
      if (y + 1 < RY) window += row;
      HIDE(window); /* else the compiler keeps an address per pixel, and runs out of registers */
    }
  }
  UNROLL for (int c = 1; c < chains; c++)
    UNROLL for (int o = 0; o < outputs; o++)
      UNROLL for (int y = 0; y < RY; y++)
        UNROLL for (int x = 0; x < RX; x++) SUM(0, o, y, x) += SUM(c, o, y, x);
  const int last = part == op->parts - 1, clip = last && op->activation == CLIP;
  const vec low = splat(clip ? op->low : -INFINITY), high = splat(clip ? op->high : INFINITY);
  UNROLL for (int o = 0; o < outputs; o++)
    if (o < kept)
      UNROLL for (int y = 0; y < RY; y++)
        UNROLL for (int x = 0; x < RX; x++) {
          vec total = SUM(0, o, y, x);
          if (last && other) total += other[o * op->other.plane + y * op->other.row + x];
          out[o * op->out.plane + y * op->out.row + x] = at_most(at_least(total, low), high);
        }
#undef SUM
}

/* The blocks that exist. NAME(channels, rows, columns, stride; 0: any). With 32 registers up to 28 sums stay in them,
   with 16 up to 12. */
#define SMALL(X, S) X(1, 1, 1, S) X(1, 1, 2, S) X(1, 1, 4, S) X(1, 2, 2, S) X(1, 1, 7, S) X(1, 1, 8, S) X(1, 2, 4, S) \
  X(1, 4, 2, S) X(4, 1, 1, S) X(4, 1, 2, S) X(8, 1, 1, S)
#define LARGE(X, S) X(1, 4, 4, S) X(1, 2, 8, S) X(1, 2, 7, S) X(1, 3, 8, S) X(1, 4, 7, S) X(1, 3, 7, S) X(1, 2, 14, S) \
  X(1, 1, 14, S) X(1, 1, 16, S) X(4, 1, 3, S) X(4, 1, 4, S) X(4, 2, 2, S) X(4, 1, 6, S) X(4, 1, 7, S)
#define ALL_OF(X, S) SMALL(X, S) LARGE(X, S)

#define DEFINE(O, Y, X, S)                                                                                           \
  static void block_##O##_##Y##_##X##_##S(const Op *op, const char *in, vec *out, const vec *other, int group,       \
                                          int part) {                                                                \
    block(O, Y, X, S, op, in, out, other, group, part);                                                              \
  }
#ifndef SEAM_KERNELS /* `seam compile` names those that its model needs */
#define SEAM_KERNELS(X) ALL_OF(X, 1) ALL_OF(X, 2) SMALL(X, 0)
#endif
SEAM_KERNELS(DEFINE)

typedef void BlockFunction(const Op *, const char *, vec *, const vec *, int, int);
#define ENTRY(O, Y, X, S) {O, Y, X, S, block_##O##_##Y##_##X##_##S},
static const struct {
  int32_t outputs, rows, columns, stride;
  BlockFunction *run;
} block_kernels[] = {SEAM_KERNELS(ENTRY)};

#ifndef SEAM_EMITTED
/* Writes (channels, rows, columns, stride) of the block kernel `index`. Returns 0 if there is none. */
int seam_kernel(int index, int32_t *shape) {
  if (index < 0 || index >= (int)(sizeof block_kernels / sizeof *block_kernels)) return 0;
  shape[0] = block_kernels[index].outputs;
  shape[1] = block_kernels[index].rows;
  shape[2] = block_kernels[index].columns;
  shape[3] = block_kernels[index].stride;
  return 1;
}
#endif

/* The first of a thread's groups: each thread gets as many entries of the lists as another. */
static int share(const Op *op, int thread, int threads) {
  if (thread <= 0) return 0;
  if (thread >= threads) return op->groups;
  const int64_t entries = op->first[op->groups] + (int64_t)op->groups;
  const int64_t wanted = entries * thread / threads;
  int low = 0, high = op->groups;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (op->first[middle] + (int64_t)middle < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* Pixels outermost: the inputs of one block stay in the first-level cache while all output channels pass over them.
   If they do not fit in, the input channels are split into parts, and the sums wait in the output meanwhile. */
static void convolve(const Op *op, float *workspace, int thread, int threads) {
  const int begin = share(op, thread, threads), end = share(op, thread + 1, threads);
  for (int b = 0; b < op->blocks; b++) {
    const Block *block = op->block + b;
    BlockFunction *run = block_kernels[block->kernel].run;
    const char *in = (const char *)(pixels(workspace, &op->in, 0) + (ptrdiff_t)block->y * op->step_y * op->in.row +
                                    (ptrdiff_t)block->x * op->step_x);
    for (int part = 0; part < op->parts; part++)
      for (int group = begin; group < end; group++) {
        const int channel = group * op->outputs;
        vec *out = pixels(workspace, &op->out, channel) + block->y * op->out.row + block->x;
        const vec *other = op->other.start < 0 ? 0 : pixels(workspace, &op->other, channel) +
                                                          block->y * op->other.row + block->x;
        run(op, in, out, other, group, part);
      }
  }
  for (int c = begin * op->outputs; c < end * op->outputs && c < op->channels; c++) finish(op, workspace, c);
}

static void pool(const Op *op, float *workspace, int channel) {
  const vec *in = pixels(workspace, &op->in, channel);
  vec *out = pixels(workspace, &op->out, channel);
  for (int y = 0; y < op->height; y++)
    for (int x = 0; x < op->width; x++) {
      const char *window = (const char *)(in + (ptrdiff_t)y * op->step_y * op->in.row + (ptrdiff_t)x * op->step_x);
      vec result = *(const vec *)(window + op->offset[0]);
      if (op->kind == POOL_MAX)
        for (int k = 1; k < op->taps; k++) {
          const vec pixel = *(const vec *)(window + op->offset[k]);
          result = at_least(pixel, result);
        }
      else {
        for (int k = 1; k < op->taps; k++) result += *(const vec *)(window + op->offset[k]);
        result *= *(const vec *)(op->scale + ((ptrdiff_t)y * op->width + x) * LANES);
      }
      out[y * op->out.row + x] = activated(op, result);
    }
}

/* The mean over a map in every lane of its image, so that what follows needs not know that the map has one pixel. */
static void pool_global(const Op *op, float *workspace, int channel) {
  const vec *in = pixels(workspace, &op->in, channel);
  vec sum = splat(0);
  for (int y = 0; y < op->taps; y++)
    for (int x = 0; x < op->step_x; x++) sum += in[y * op->in.row + x];
  const int cells = op->picture.grid_y * op->picture.grid_x;
  for (int distance = 1; distance < cells; distance *= 2) sum += permuted(sum, lane_numbers ^ distance);
  *pixels(workspace, &op->out, channel) = activated(op, sum * splat(op->scale[0]));
}

static void pointwise(const Op *op, float *workspace, int channel) {
  const vec *in = pixels(workspace, &op->in, channel);
  const vec *other = op->kind == ACTIVATE ? in : pixels(workspace, &op->other, channel);
  vec *out = pixels(workspace, &op->out, channel);
  for (int y = 0; y < op->height; y++)
    for (int x = 0; x < op->width; x++) {
      vec a = in[y * op->in.row + x];
      if (op->kind != ACTIVATE) {
        const vec b = other[op->other_step * (y * op->other.row + x)];
        a = op->kind == ADD ? a + b : a * b;
      }
      out[y * op->out.row + x] = activated(op, a);
    }
}

/* Reads a channel of the images into lanes (or writes it back). Rows of all lanes advance together, so that each
   vector is written once; a lane whose image or row does not exist reads zeros. */
static void transfer(const Op *op, float *workspace, float *picture, int images, int channel) {
  const Picture *p = &op->picture;
  const int reading = op->kind == PACK;
  const Map *map = reading ? &op->out : &op->in;
  float *vectors = (float *)pixels(workspace, map, channel);
  for (int y = 0; y < op->height; y++)
    for (int image = 0; image < p->images; image++)
      for (int gy = 0; gy < p->grid_y; gy++)
        for (int gx = 0; gx < p->grid_x; gx++) {
          const int64_t row = (int64_t)gy * op->height + y, column = (int64_t)gx * op->width;
          int64_t width = p->width - column < op->width ? p->width - column : op->width;
          if (image >= images || row >= p->height || width < 0) width = 0;
          if (!width && !reading) continue;
          const int lane = (image * p->grid_y + gy) * p->grid_x + gx;
          float *line = vectors + (ptrdiff_t)y * map->row * LANES + lane, *plain = picture;
          if (width) plain += (((int64_t)image * op->channels + channel) * p->height + row) * p->width + column;
          if (reading) {
            for (int x = 0; x < width; x++) line[x * LANES] = plain[x];
            for (int x = (int)width; x < op->width; x++) line[x * LANES] = 0;
          } else
            for (int x = 0; x < width; x++) plain[x] = line[x * LANES];
        }
}

SEAM_FUNCTION void seam_operation(const Op *op, float *workspace, float *picture, int images, int thread, int threads) {
  if (op->kind == CONVOLVE) {
    convolve(op, workspace, thread, threads);
    return;
  }
  const int begin = (int)((int64_t)op->channels * thread / threads);
  const int end = (int)((int64_t)op->channels * (thread + 1) / threads);
  for (int channel = begin; channel < end; channel++) {
    switch (op->kind) {
      case PACK:
      case UNPACK: transfer(op, workspace, picture, images, channel); break;
      case POOL_MAX:
      case POOL_AVERAGE: pool(op, workspace, channel); break;
      case POOL_GLOBAL: pool_global(op, workspace, channel); break;
      default: pointwise(op, workspace, channel);
    }
    if (op->kind != UNPACK) finish(op, workspace, channel);
  }
}
