// The best rate of this core's fused multiply-adds in float32, in 10^9 operations a second: throughput.py builds it.

#include <chrono>
#include <cstdio>

#if defined(__AVX512F__)
constexpr int LANES = 16, CHAINS = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8, CHAINS = 12;  // with the two factors they fit 16 registers
#else
constexpr int LANES = 4, CHAINS = 16;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));

int main() {
  volatile float unknown = 0.5f;  // to the compiler
  double best = 0, total = 0;
  for (int round = 0; round < 40; round++) {
    const Vector factor = unknown - Vector{}, term = unknown - Vector{};
    Vector chains[CHAINS];
    for (int c = 0; c < CHAINS; c++) chains[c] = unknown * c - Vector{};  // all different, or they are computed once
    const long steps = 300000;
    const auto start = std::chrono::steady_clock::now();
    for (long i = 0; i < steps; i++)
#pragma GCC unroll 16
      for (int c = 0; c < CHAINS; c++) chains[c] = chains[c] * factor + term;
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double rate = 2.0 * CHAINS * LANES * steps / seconds.count() / 1e9;
    if (rate > best) best = rate;
    for (int c = 0; c < CHAINS; c++) total += chains[c][0];
  }
  std::printf("%.1f\n", best);
  return total == 0;  // the chains are needed
}
