// A population of multilayer perceptrons on a CPU: forward and backward pass, one network after the other.
//
// A network is [Linear, (LayerNorm,) ReLU]* Linear. What it needs stays in the core's cache until the next one's turn.
// Products are blocked in registers; bias, ReLU and its derivative are applied before a result is stored.
// agent/networks/native.py builds this file and registers the derivative.
//
// Axes: R row, which is a network of the population; B batch row; D inputs; N outputs. Matrices are row-major.

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <utility>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace {

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, TILE_ROWS = 12;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int64_t LANES = 8, TILE_ROWS = 6;
#else  // NEON, or whatever the compiler makes of it
constexpr int64_t LANES = 4, TILE_ROWS = 8;
#endif
constexpr int64_t PANEL = 2 * LANES;  // columns of a tile

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector x) { *reinterpret_cast<Vector*>(to) = x; }
inline Vector all(float x) { return x - Vector{}; }
inline float sum(Vector x) {
  float total = 0;
  for (int64_t i = 0; i < LANES; i++) total += x[i];
  return total;
}

// Memory of a thread that is kept between calls.
struct Scratch {
  float* take(int64_t size) {  // aligned to a cache line
    size = (size + 15) / 16 * 16;
    if (used + size > capacity) std::abort();
    used += size;
    return data + used - size;
  }
  void reserve(int64_t size) {
    used = 0;
    if (size <= capacity) return;
    std::free(data);
    data = static_cast<float*>(std::aligned_alloc(64, 4 * ((size + 15) / 16 * 16)));
    if (data == nullptr) std::abort();
    capacity = size;
  }
  ~Scratch() { std::free(data); }
  float* data = nullptr;
  int64_t capacity = 0, used = 0;
};
thread_local Scratch scratch;

// Element (i, j) is at data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
  Matrix transposed() const { return {data, column, row}; }
};

enum class Then { nothing, add_bias, add_bias_and_relu, relu_backward };

// ROWS x (COLUMNS vectors) of A B, held in registers. b: rows of `stride` floats.
template <int64_t ROWS, int64_t COLUMNS>
__attribute__((always_inline)) inline void tile(
    int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t stride,
    Vector (&total)[ROWS][COLUMNS]) {
  for (int64_t k = 0; k < depth; k++) {
    Vector columns[COLUMNS];
#pragma GCC unroll 16
    for (int64_t j = 0; j < COLUMNS; j++) columns[j] = load(b + k * stride + j * LANES);
#pragma GCC unroll 16
    for (int64_t i = 0; i < ROWS; i++) {
      const Vector x = all(a[i * a_row + k * a_column]);
#pragma GCC unroll 16
      for (int64_t j = 0; j < COLUMNS; j++) total[i][j] += x * columns[j];
    }
  }
}

// `other`: the bias [columns], or of relu_backward the activations, laid out as c.
template <int64_t ROWS, Then THEN>
void rows_of_product(
    int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t stride,
    float* c, int64_t c_row, const float* other) {
  Vector total[ROWS][2];
#pragma GCC unroll 16
  for (int64_t i = 0; i < ROWS; i++) total[i][0] = total[i][1] = Vector{};
  if (columns > LANES) {
    tile<ROWS, 2>(depth, a, a_row, a_column, b, stride, total);
  } else {
    Vector half[ROWS][1];
#pragma GCC unroll 16
    for (int64_t i = 0; i < ROWS; i++) half[i][0] = Vector{};
    tile<ROWS, 1>(depth, a, a_row, a_column, b, stride, half);
#pragma GCC unroll 16
    for (int64_t i = 0; i < ROWS; i++) total[i][0] = half[i][0];
  }
  const bool whole = columns == PANEL;
#pragma GCC unroll 16
  for (int64_t i = 0; i < ROWS; i++) {
    alignas(64) float edge[PANEL], edge_other[PANEL] = {};
    const float* with = other == nullptr ? nullptr : THEN == Then::relu_backward ? other + i * c_row : other;
    if (THEN != Then::nothing && !whole) {
      std::memcpy(edge_other, with, 4 * columns);
      with = edge_other;
    }
    float* to = whole ? c + i * c_row : edge;
#pragma GCC unroll 2
    for (int64_t j = 0; j < 2; j++) {
      Vector x = total[i][j];
      if (THEN == Then::add_bias || THEN == Then::add_bias_and_relu) x += load(with + j * LANES);
      if (THEN == Then::add_bias_and_relu) x = x < 0.0f ? Vector{} : x;  // NaN stays NaN
      if (THEN == Then::relu_backward) x = load(with + j * LANES) <= 0.0f ? Vector{} : x;
      store(to + j * LANES, x);
    }
    if (!whole) std::memcpy(c + i * c_row, edge, 4 * columns);
  }
}

template <Then THEN, int64_t ROWS = TILE_ROWS>
void some_rows(
    int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b,
    int64_t stride, float* c, int64_t c_row, const float* other) {
  if constexpr (ROWS > 1)
    if (rows < ROWS)
      return some_rows<THEN, ROWS - 1>(rows, columns, depth, a, a_row, a_column, b, stride, c, c_row, other);
  rows_of_product<ROWS, THEN>(columns, depth, a, a_row, a_column, b, stride, c, c_row, other);
}

// `columns` columns of B from the first one on, a panel wide, zeros behind them.
void pack(const Matrix& b, int64_t depth, int64_t first, int64_t columns, float* panel) {
  const float* from = b.data + first * b.column;
  if (columns < PANEL) std::memset(panel, 0, 4 * depth * PANEL);
  if (b.column == 1 && columns == PANEL) {
    for (int64_t k = 0; k < depth; k++) std::memcpy(panel + k * PANEL, from + k * b.row, 4 * PANEL);
  } else if (b.column == 1) {
    for (int64_t k = 0; k < depth; k++) std::memcpy(panel + k * PANEL, from + k * b.row, 4 * columns);
  } else {
    for (int64_t j = 0; j < columns; j++)
      for (int64_t k = 0; k < depth; k++) panel[k * PANEL + j] = from[k * b.row + j * b.column];
  }
}

// C = then(A B), A [rows, depth], B [depth, columns], C [rows, columns] contiguous.  panel: depth * PANEL floats.
template <Then THEN = Then::nothing>
void product(
    int64_t rows, int64_t columns, int64_t depth, const Matrix& a, const Matrix& b, float* c, float* panel,
    const float* other = nullptr) {
  // The last tiles share what does not fill one: 128 rows in tiles of 6 are 20 of 6 and 2 of 4.
  const int64_t tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
  for (int64_t n = 0; n < columns; n += PANEL) {
    const int64_t width = columns - n < PANEL ? columns - n : PANEL;
    const bool direct = b.column == 1 && width == PANEL && tiles <= 2;  // packing costs more than it saves
    if (!direct) pack(b, depth, n, width, panel);
    const float* from = direct ? b.data + n : panel;
    const int64_t stride = direct ? b.row : PANEL;
    for (int64_t m = 0, left = tiles; m < rows; left--) {
      const int64_t height = left > 2 ? TILE_ROWS : (rows - m + left - 1) / left;
      const float* with = other;
      if (other != nullptr) with += THEN == Then::relu_backward ? m * columns + n : n;
      some_rows<THEN>(
          height, width, depth, a.data + m * a.row, a.row, a.column, from, stride, c + m * columns + n, columns, with);
      m += height;
    }
  }
}

float dot(int64_t size, const float* a, const float* b) {
  const int64_t whole = size / LANES * LANES;
  Vector total{};
  for (int64_t k = 0; k < whole; k += LANES) total += load(a + k) * load(b + k);
  float value = sum(total);
  for (int64_t k = whole; k < size; k++) value += a[k] * b[k];
  return value;
}

// C = A B + bias for few columns: dot products along the depth, which needs less than a panel of mostly zeros.
void narrow_product(
    int64_t rows, int64_t columns, int64_t depth, const float* a, const float* b, const float* bias, float* c,
    float* packed) {
  for (int64_t n = 0; n < columns; n++)
    for (int64_t k = 0; k < depth; k++) packed[n * depth + k] = b[k * columns + n];
  for (int64_t m = 0; m < rows; m++)
    for (int64_t n = 0; n < columns; n++)
      c[m * columns + n] = dot(depth, a + m * depth, packed + n * depth) + bias[n];
}

// [rows, columns] -> [columns]
void column_sums(int64_t rows, int64_t columns, const float* x, float* sums) {
  std::memset(sums, 0, 4 * columns);
  for (int64_t m = 0; m < rows; m++)
    for (int64_t n = 0; n < columns; n++) sums[n] += x[m * columns + n];
}
float mean(int64_t size, const float* x) {
  const int64_t whole = size / LANES * LANES;
  Vector total{};
  for (int64_t k = 0; k < whole; k += LANES) total += load(x + k);
  float value = sum(total);
  for (int64_t k = whole; k < size; k++) value += x[k];
  return value / size;
}

// ReLU(LayerNorm(x)); x becomes what is normalized, before scale and shift.
void norm_and_relu(
    int64_t rows, int64_t size, float eps, const float* scale, const float* shift, float* x, float* inverse_deviation,
    float* result) {
  for (int64_t m = 0; m < rows; m++, x += size, result += size) {
    const float center = mean(size, x);
    for (int64_t k = 0; k < size; k++) x[k] -= center;
    const float inverse = 1.0f / std::sqrt(dot(size, x, x) / size + eps);
    for (int64_t k = 0; k < size; k++) {
      x[k] *= inverse;
      const float y = x[k] * scale[k] + shift[k];
      result[k] = y < 0.0f ? 0.0f : y;
    }
    inverse_deviation[m] = inverse;
  }
}

// delta: the derivative by the result of LayerNorm, which becomes that by its input.
void norm_backward(
    int64_t rows, int64_t size, const float* scale, const float* normalized, const float* inverse_deviation,
    float* delta, float* by_scale, float* by_shift) {
  std::memset(by_scale, 0, 4 * size);
  std::memset(by_shift, 0, 4 * size);
  for (int64_t m = 0; m < rows; m++, delta += size, normalized += size) {
    for (int64_t k = 0; k < size; k++) {
      by_scale[k] += delta[k] * normalized[k];
      by_shift[k] += delta[k];
      delta[k] *= scale[k];
    }
    const float center = mean(size, delta), along = dot(size, delta, normalized) / size;
    for (int64_t k = 0; k < size; k++) delta[k] = (delta[k] - center - normalized[k] * along) * inverse_deviation[m];
  }
}

struct Layer {
  int64_t num_in, num_out;
  int64_t weight, bias, scale, shift;             // in a row of parameters
  int64_t result, normalized, inverse_deviation;  // in a row of what the forward pass keeps; not of the last layer
};

struct Network {
  Network(int64_t batch, int64_t num_layers, const int64_t* sizes, double eps)
      : batch(batch), has_norm(eps >= 0), eps(static_cast<float>(eps)) {
    int64_t at = 0;
    for (int64_t l = 0; l < num_layers; l++) {
      const int64_t num_in = sizes[l], num_out = sizes[l + 1];
      const bool is_last = l == num_layers - 1;
      Layer layer{num_in, num_out, at, at + num_in * num_out, 0, 0, kept, 0, 0};
      at += (num_in + 1) * num_out;
      if (!is_last) {
        kept += batch * num_out;
        if (has_norm) {
          layer.scale = at, layer.shift = at + num_out, at += 2 * num_out;
          layer.normalized = kept, layer.inverse_deviation = kept + batch * num_out, kept += batch * (num_out + 1);
        }
      }
      layers.push_back(layer);
      widest = std::max({widest, num_in, num_out});
    }
  }

  int64_t panel_size() const { return PANEL * std::max(widest, batch); }
  static bool is_narrow(const Layer& layer) { return layer.num_out <= LANES / 2; }

  void forward(const float* x, const float* parameters, float* out, float* keep, float* panel) const {
    for (const Layer& layer : layers) {
      const float *weight = parameters + layer.weight, *bias = parameters + layer.bias;
      const Matrix input{x, layer.num_in, 1}, weights{weight, layer.num_out, 1};
      if (&layer == &layers.back()) {
        if (is_narrow(layer)) narrow_product(batch, layer.num_out, layer.num_in, x, weight, bias, out, panel);
        else product<Then::add_bias>(batch, layer.num_out, layer.num_in, input, weights, out, panel, bias);
        return;
      }
      float* result = keep + layer.result;
      if (has_norm) {
        float* normalized = keep + layer.normalized;
        product<Then::add_bias>(batch, layer.num_out, layer.num_in, input, weights, normalized, panel, bias);
        norm_and_relu(
            batch, layer.num_out, eps, parameters + layer.scale, parameters + layer.shift, normalized,
            keep + layer.inverse_deviation, result);
      } else {
        product<Then::add_bias_and_relu>(batch, layer.num_out, layer.num_in, input, weights, result, panel, bias);
      }
      x = result;
    }
  }

  // delta: the derivative by the output. by_x, by_parameters: null where it is not wanted.
  void backward(
      const float* delta, const float* x, const float* parameters, const float* kept, float* by_x,
      float* by_parameters, float* panel, float* scratch0, float* scratch1) const {
    for (int64_t l = layers.size() - 1; l >= 0; l--) {
      const Layer& layer = layers[l];
      const float* input = l == 0 ? x : kept + layers[l - 1].result;
      if (by_parameters != nullptr) {
        const Matrix columns{input, 1, layer.num_in}, deltas{delta, layer.num_out, 1};
        float* by_weight = by_parameters + layer.weight;
        if (is_narrow(layer)) {  // transposed: a panel is filled
          float* transposed = scratch0;
          product(layer.num_out, layer.num_in, batch, deltas.transposed(), {input, layer.num_in, 1}, transposed, panel);
          for (int64_t k = 0; k < layer.num_in; k++)
            for (int64_t n = 0; n < layer.num_out; n++)
              by_weight[k * layer.num_out + n] = transposed[n * layer.num_in + k];
        } else {
          product(layer.num_in, layer.num_out, batch, columns, deltas, by_weight, panel);
        }
        column_sums(batch, layer.num_out, delta, by_parameters + layer.bias);
      }
      const Matrix deltas{delta, layer.num_out, 1}, weights{parameters + layer.weight, 1, layer.num_out};
      if (l == 0) {
        if (by_x != nullptr) product(batch, layer.num_in, layer.num_out, deltas, weights, by_x, panel);
        return;
      }
      product<Then::relu_backward>(batch, layer.num_in, layer.num_out, deltas, weights, scratch0, panel, input);
      if (has_norm) {
        const Layer& below = layers[l - 1];
        float* sums = by_parameters == nullptr ? panel : by_parameters + below.scale;  // of scale, then of shift
        norm_backward(
            batch, below.num_out, parameters + below.scale, kept + below.normalized, kept + below.inverse_deviation,
            scratch0, sums, sums + below.num_out);
      }
      delta = scratch0;
      std::swap(scratch0, scratch1);
    }
  }

  int64_t batch, kept = 0, widest = 0;
  bool has_norm;
  float eps;
  std::vector<Layer> layers;
};

// Calls work(row) for every row, on several threads with the main one's treatment of denormals.
template <typename Work>
void for_each_row(int64_t rows, int64_t num_threads, const Work& work) {
  if (num_threads <= 1 || rows <= 1) {
    for (int64_t row = 0; row < rows; row++) work(row);
    return;
  }
  std::fenv_t environment;
  std::fegetenv(&environment);
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    std::fesetenv(&environment);
    work(row);
  }
}

// What the dispatcher hands over, and takes back, in 64 bits each.
template <typename T>
T unboxed(StableIValue value) {
  T result;
  std::memcpy(&result, &value, sizeof(T));
  return result;
}

struct Tensor {
  explicit Tensor(StableIValue value) : handle(unboxed<AtenTensorHandle>(value)) {}
  Tensor(std::initializer_list<int64_t> sizes) {  // float32, contiguous, not initialized
    std::vector<int64_t> strides(sizes.size(), 1);
    for (int64_t i = static_cast<int64_t>(sizes.size()) - 2; i >= 0; i--)
      strides[i] = strides[i + 1] * sizes.begin()[i + 1];
    aoti_torch_empty_strided(
        sizes.size(), sizes.begin(), strides.data(), aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
        &handle);
  }
  Tensor(const Tensor&) = delete;
  ~Tensor() {
    if (handle != nullptr) aoti_torch_delete_tensor_object(handle);
  }
  template <typename T = float>
  T* data() const {
    void* pointer = nullptr;
    aoti_torch_get_data_ptr(handle, &pointer);
    return static_cast<T*>(pointer);
  }
  int64_t size(int64_t axis) const {
    int64_t result = 0;
    aoti_torch_get_size(handle, axis, &result);
    return result;
  }
  int64_t row_stride() const {
    int64_t result = 0;
    aoti_torch_get_stride(handle, 0, &result);
    return result;
  }
  StableIValue boxed() {  // gives it away
    StableIValue result = 0;
    std::memcpy(&result, &handle, sizeof(handle));
    handle = nullptr;
    return result;
  }
  AtenTensorHandle handle = nullptr;
};

// (x [R, B, D], parameters [R, F], sizes [L + 1], eps, num_outputs, num_kept, num_threads)
// -> out [R, B, N], kept [R, num_kept]; num_kept is 0 where no backward pass follows
void mlp_forward(StableIValue* stack, uint64_t, uint64_t) {
  Tensor x(stack[0]), parameters(stack[1]), sizes(stack[2]);
  const int64_t num_outputs = unboxed<int64_t>(stack[4]), num_kept = unboxed<int64_t>(stack[5]);
  const int64_t rows = x.size(0), batch = x.size(1), num_inputs = x.size(2), stride = parameters.row_stride();
  const Network network(batch, sizes.size(0) - 1, sizes.data<int64_t>(), unboxed<double>(stack[3]));
  Tensor out{rows, batch, num_outputs}, kept{rows, num_kept};
  const float *inputs = x.data(), *weights = parameters.data();
  float *outputs = out.data(), *keep = kept.data();
  for_each_row(rows, unboxed<int64_t>(stack[6]), [&](int64_t row) {
    scratch.reserve(network.panel_size() + 16 + network.kept);
    float* panel = scratch.take(network.panel_size());
    float* own = num_kept == 0 ? scratch.take(network.kept) : keep + row * num_kept;
    network.forward(
        inputs + row * batch * num_inputs, weights + row * stride, outputs + row * batch * num_outputs, own, panel);
  });
  stack[0] = out.boxed();
  stack[1] = kept.boxed();
}

// (grad [R, B, N], x, parameters, sizes, kept, eps, needs_x, needs_parameters, num_threads)
// -> the derivative by x [R, B, D], and that by the parameters [R, F]; [0, …] where it is not needed
void mlp_backward(StableIValue* stack, uint64_t, uint64_t) {
  Tensor grad(stack[0]), x(stack[1]), parameters(stack[2]), sizes(stack[3]), kept(stack[4]);
  const bool needs_x = unboxed<bool>(stack[6]), needs_parameters = unboxed<bool>(stack[7]);
  const int64_t rows = x.size(0), batch = x.size(1), num_inputs = x.size(2), num_outputs = grad.size(2);
  const int64_t stride = parameters.row_stride(), num_parameters = parameters.size(1), num_kept = kept.size(1);
  const Network network(batch, sizes.size(0) - 1, sizes.data<int64_t>(), unboxed<double>(stack[5]));
  Tensor by_x{needs_x ? rows : 0, batch, num_inputs}, by_parameters{needs_parameters ? rows : 0, num_parameters};
  const float *gradients = grad.data(), *inputs = x.data(), *weights = parameters.data(), *keep = kept.data();
  float *to_x = by_x.data(), *to_parameters = by_parameters.data();
  for_each_row(rows, unboxed<int64_t>(stack[8]), [&](int64_t row) {
    const int64_t size = std::max(batch, LANES) * network.widest;
    scratch.reserve(network.panel_size() + 2 * size + 48);
    float *panel = scratch.take(network.panel_size()), *first = scratch.take(size), *second = scratch.take(size);
    network.backward(
        gradients + row * batch * num_outputs, inputs + row * batch * num_inputs, weights + row * stride,
        keep + row * num_kept, needs_x ? to_x + row * batch * num_inputs : nullptr,
        needs_parameters ? to_parameters + row * num_parameters : nullptr, panel, first, second);
  });
  stack[0] = by_x.boxed();
  stack[1] = by_parameters.boxed();
}

[[maybe_unused]] const bool is_registered = [] {
  TorchLibraryHandle definitions, implementations;
  aoti_torch_library_init_def("gumbel_native", __FILE__, __LINE__, &definitions);
  aoti_torch_library_def(
      definitions,
      "mlp_forward(Tensor x, Tensor parameters, Tensor sizes, float eps, int num_outputs, int num_kept, "
      "int num_threads) -> (Tensor, Tensor)");
  aoti_torch_library_def(
      definitions,
      "mlp_backward(Tensor grad, Tensor x, Tensor parameters, Tensor sizes, Tensor kept, float eps, bool needs_x, "
      "bool needs_parameters, int num_threads) -> (Tensor, Tensor)");
  aoti_torch_library_init_impl("gumbel_native", "CPU", __FILE__, __LINE__, &implementations);
  aoti_torch_library_impl(implementations, "mlp_forward", mlp_forward);
  aoti_torch_library_impl(implementations, "mlp_backward", mlp_backward);
  return true;
}();
}  // namespace
