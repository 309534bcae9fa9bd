/* An operator of ONNX Runtime that hands images to an engine of this process: `Zeros` of the domain `seam`.

   ONNX Runtime loads this library by its function RegisterCustomOps and calls the operator through the structure below.
   The file needs no header of ONNX Runtime. Its binary interface is append-only: a function keeps its position in the
   table for good, and a custom operator states which version of the structure it has. We name the few positions that
   we use and check the version before any other call. */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define VERSION 16 /* of the interface: ONNX Runtime 1.16, the first with operators that return errors */

typedef void *Status; /* null: all is well */
typedef void Function(void);

typedef struct {
  Function *const *(*table)(uint32_t version);
  const char *(*version)(void);
} Base;

enum {                      /* positions in the table */
  CREATE_STATUS = 0,        /* (code, message) */
  CREATE_DOMAIN = 26,       /* (name, domain out) */
  ADD_OPERATOR = 27,        /* (domain, operator) */
  ADD_DOMAIN = 28,          /* (session options, domain) */
  TENSOR_DATA = 51,         /* (value, pointer out) */
  DIMENSION_COUNT = 61,     /* (shape, count out) */
  DIMENSIONS = 62,          /* (shape, sizes out, count) */
  TENSOR_SHAPE = 65,        /* (value, shape out) */
  INTEGER_ATTRIBUTE = 86,   /* (kernel info, name, number out) */
  INPUT = 90,               /* (context, index, value out) */
  OUTPUT = 91,              /* (context, index, sizes, count, value out) */
  RELEASE_SHAPE = 99        /* (shape) */
};

typedef struct Operator Operator;
struct Operator {
  uint32_t version;
  void *(*create_without_status)(const Operator *, Function *const *, const void *);
  const char *(*name)(const Operator *);
  const char *(*provider)(const Operator *);
  int (*input_type)(const Operator *, size_t);
  size_t (*input_count)(const Operator *);
  int (*output_type)(const Operator *, size_t);
  size_t (*output_count)(const Operator *);
  void (*compute_without_status)(void *, void *);
  void (*destroy)(void *);
  int (*input_kind)(const Operator *, size_t);
  int (*output_kind)(const Operator *, size_t);
  int (*input_memory)(const Operator *, size_t);
  int (*least_inputs)(const Operator *);
  int (*inputs_alike)(const Operator *);
  int (*least_outputs)(const Operator *);
  int (*outputs_alike)(const Operator *);
  Status (*create)(const Operator *, Function *const *, const void *info, void **kernel);
  Status (*compute)(void *kernel, void *context);
};

/* Runs engine number `engine` on images. Returns 0, or 1 if there is no such engine, or 2 if it fails. */
typedef int Runner(int64_t engine, int64_t images, const float *input, float *output);
static _Atomic(Runner *) runner;
EXPORT void seam_set_runner(Runner *function) { atomic_store(&runner, function); }

enum { ENGINE, RANK, SIZES, OUTPUTS = SIZES + 3, NUMBERS = OUTPUTS + 3 };
static const char *const attribute_names[NUMBERS] = {"engine",   "rank",          "channels",    "height",
                                                     "width",    "out_channels",  "out_height",  "out_width"};

typedef struct {
  Function *const *table;
  int64_t numbers[NUMBERS];
} Kernel;

enum { KERNELS_AT_ONCE = 4096 };
static Kernel kernels[KERNELS_AT_ONCE]; /* their number is small, and a fixed table cannot leak */
static atomic_int used[KERNELS_AT_ONCE];

static Status failed(Function *const *table, const char *message) {
  return ((Status(*)(int, const char *))table[CREATE_STATUS])(1, message);
}

static Status create(const Operator *operator, Function *const *table, const void *info, void **result) {
  (void)operator;
  int slot = 0;
  for (int free = 0; slot < KERNELS_AT_ONCE; slot++, free = 0)
    if (atomic_compare_exchange_strong(used + slot, &free, 1)) break;
  if (slot == KERNELS_AT_ONCE) return failed(table, "seam: too many operators in this process");
  Kernel *kernel = kernels + slot;
  kernel->table = table;
  for (int i = 0; i < NUMBERS; i++) {
    Status status = ((Status(*)(const void *, const char *, int64_t *))table[INTEGER_ATTRIBUTE])(
        info, attribute_names[i], kernel->numbers + i);
    if (status) {
      atomic_store(used + slot, 0);
      return status;
    }
  }
  *result = kernel;
  return 0;
}

static void destroy(void *kernel) { atomic_store(used + ((Kernel *)kernel - kernels), 0); }

static Status compute(void *argument, void *context) {
  const Kernel *kernel = argument;
  const int64_t *numbers = kernel->numbers;
  Function *const *table = kernel->table;
  void *input = 0, *output = 0, *shape = 0;
  const float *from = 0;
  float *to = 0;
  size_t rank = 0;
  int64_t sizes[4] = {0};
  Status status = ((Status(*)(void *, size_t, void **))table[INPUT])(context, 0, &input);
  if (status) return status;
  if ((status = ((Status(*)(void *, void **))table[TENSOR_SHAPE])(input, &shape))) return status;
  status = ((Status(*)(void *, size_t *))table[DIMENSION_COUNT])(shape, &rank);
  if (!status && rank == 4) status = ((Status(*)(void *, int64_t *, size_t))table[DIMENSIONS])(shape, sizes, 4);
  ((void (*)(void *))table[RELEASE_SHAPE])(shape);
  if (status) return status;
  for (int i = 0; i < 3; i++)
    if (rank != 4 || sizes[1 + i] != numbers[SIZES + i]) return failed(table, "seam: the images have another shape");
  const int64_t wanted[4] = {sizes[0], numbers[OUTPUTS], numbers[OUTPUTS + 1], numbers[OUTPUTS + 2]};
  status = ((Status(*)(void *, size_t, const int64_t *, size_t, void **))table[OUTPUT])(
      context, 0, wanted, numbers[RANK] == 2 ? 2 : 4, &output);
  if (status) return status;
  if ((status = ((Status(*)(void *, const float **))table[TENSOR_DATA])(input, &from))) return status;
  if ((status = ((Status(*)(void *, float **))table[TENSOR_DATA])(output, &to))) return status;
  Runner *run = atomic_load(&runner);
  const int result = run ? run(numbers[ENGINE], sizes[0], from, to) : 1;
  if (result == 1) return failed(table, "seam: this model was rewritten in another process, or its session is closed");
  return result ? failed(table, "seam: the engine failed") : 0;
}

static const char *operator_name(const Operator *operator) { return (void)operator, "Zeros"; }
static const char *any_provider(const Operator *operator) { return (void)operator, (const char *)0; }
static int float32(const Operator *operator, size_t index) { return (void)operator, (void)index, 1; }
static size_t one(const Operator *operator) { return (void)operator, (size_t)1; }
static int required(const Operator *operator, size_t index) { return (void)operator, (void)index, 0; }
static int arity(const Operator *operator) { return (void)operator, 1; }

/* Called by ONNX Runtime when the library is registered with a session's options. */
EXPORT Status RegisterCustomOps(void *options, const Base *base) {
  static const Operator operator = {
      VERSION,  0, operator_name, any_provider, float32, one,   float32, one,    0,      destroy,
      required, required, required, arity, arity, arity, arity, create, compute};
  Function *const *table = base->table(VERSION);
  if (!table) return 0; /* older than 1.16: the operator stays unknown, and a model that has it is refused */
  void *domain = 0;
  Status status = ((Status(*)(const char *, void **))table[CREATE_DOMAIN])("seam", &domain);
  if (!status) status = ((Status(*)(void *, const Operator *))table[ADD_OPERATOR])(domain, &operator);
  if (!status) status = ((Status(*)(void *, void *))table[ADD_DOMAIN])(options, domain);
  return status;
}
