/* The structures that the planner fills and the kernels read. layout.py explains the layout of tensors.

   A tensor is stored in vectors of LANES floats. A lane belongs to one image and to one cell of a grid laid over
   the image; the vector at (channel, y, x) holds that pixel of every lane's cell. Around each cell lies a border, a
   copy of the neighbouring cells' pixels or padding. All loads are aligned, whatever the stride and the map's size. */
#ifndef SEAM_STRUCTURES_
#define SEAM_STRUCTURES_

#include <stdint.h>

#ifndef LANES
#define LANES 4
#endif
#ifndef SEAM_FUNCTION /* `static` in the file that `seam compile` writes */
#define SEAM_FUNCTION
#endif

typedef struct {      /* where a tensor lies in the workspace */
  int64_t start;      /* floats to the pixel (0, 0) of channel 0 of the first lane's cell; -1: no tensor */
  int32_t row, plane; /* vectors from a row to the next, from a channel to the next */
} Map;

typedef struct {     /* one vector of a border, or a pixel that lies outside the image in some lanes */
  int32_t to, from;  /* vectors from the pixel (0, 0) of the channel */
  int32_t pattern;   /* which lanes it takes: an index into `lanes`; -1: the fill value in all lanes */
} Border;

typedef struct {     /* lane i takes lane `source[i]` if mask[i] has all bits set, and the fill value if it has none */
  int32_t source[LANES];
  int32_t mask[LANES];
} Lanes;

typedef struct {     /* a rectangle of output pixels whose sums are kept in registers */
  int32_t y, x, kernel;
} Block;

typedef struct {     /* where images lie in memory that is laid out [image, channel, y, x] */
  int32_t images, grid_y, grid_x; /* lanes are [image, grid y, grid x] */
  int32_t height, width;          /* of a whole map */
} Picture;

enum { PACK, UNPACK, CONVOLVE, POOL_MAX, POOL_AVERAGE, POOL_GLOBAL, ACTIVATE, ADD, MULTIPLY, KINDS };
enum { CLIP, SIGMOID, SILU, HARD_SIGMOID, HARD_SWISH, LEAKY };

typedef struct {
  int32_t kind, channels, height, width; /* channels, and a cell's rows and columns, of the output */
  int32_t step_y, step_x;                /* stride */
  Map out, in, other;                    /* other: what a convolution adds to its sums, or a second operand */
  int32_t other_step;                    /* 0: the second operand has one vector per channel; else 1 */
  int32_t activation;
  float low, high, alpha, beta, fill;    /* clip to low..high; of the activation; of the border */
  int32_t outputs;                       /* convolution: output channels that share a list of inputs */
  int32_t groups, parts;                 /* how many such lists; into how many input ranges each is split */
  int32_t taps;                          /* pooling: pixels per window */
  const int32_t *first;                  /* [parts * groups + 1]: where a list begins in `offset` */
  const int32_t *offset;                 /* bytes from the window's first pixel (y, x) * step of channel 0 */
  const float *value;                    /* [entries, outputs] */
  const float *bias;                     /* [groups * outputs] */
  const float *scale;                    /* average pooling: [height, width, LANES] */
  int32_t blocks, borders;
  const Block *block;
  const Border *border;
  const Lanes *lanes;
  Picture picture;
} Op;

typedef struct {         /* operations that run on `images` images at once */
  const Op *ops;
  int32_t count, images;
  int64_t input, output; /* floats per image of what PACK reads and UNPACK writes */
  int64_t buffer;        /* where the output goes: -1: to the caller; else floats into the shared workspace */
} Stage;

/* Runs one operation's share of one thread. `picture`: what PACK reads or UNPACK writes, of `images` images. */
SEAM_FUNCTION void seam_operation(const Op *op, float *workspace, float *picture, int images, int thread, int threads);

#endif
