#include "ops/adafactor.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace lowrank {
namespace {

constexpr double kFloor = 1e-30;  // Transformers' eps[0]
constexpr double kDecayRate = -0.8;

double beta2_of(const AdafactorConfig& config) { return 1.0 - std::pow(static_cast<double>(config.step), kDecayRate); }

void blend(double beta2, const std::vector<double>& means, float* averages) {
  for (size_t i = 0; i < means.size(); ++i) {
    averages[i] = static_cast<float>(beta2 * static_cast<double>(averages[i]) + (1.0 - beta2) * means[i]);
  }
}

// What a clipped update multiplies by, given Σ u² over n elements.
double clipped_rate(const AdafactorConfig& config, double squares, size_t n) {
  return config.lr / std::max(1.0, std::sqrt(squares / static_cast<double>(n)));
}

}  // namespace

void adafactor_update_matrix(const AdafactorConfig& config, size_t rows, size_t columns, const StoredFloats& g, const StoredFloats& p, float* row_squares,
                             float* column_squares) {
  if (rows == 0 || columns == 0) return;
  const double scale = config.grad_scale;
  std::vector<double> row_means(rows), column_means(columns);
  std::vector<float> gradients(columns), values(columns);
  for (size_t row = 0; row < rows; ++row) {
    const float* const gradient_row = g.read(row * columns, columns, gradients.data());
    for (size_t column = 0; column < columns; ++column) {
      const double gradient = scale * static_cast<double>(gradient_row[column]);
      const double square = gradient * gradient + kFloor;
      row_means[row] += square;
      column_means[column] += square;
    }
    row_means[row] /= static_cast<double>(columns);
  }
  for (double& mean : column_means) mean /= static_cast<double>(rows);
  blend(beta2_of(config), row_means, row_squares);
  blend(beta2_of(config), column_means, column_squares);

  double mean = 0;
  for (size_t row = 0; row < rows; ++row) mean += static_cast<double>(row_squares[row]);
  mean /= static_cast<double>(rows);
  std::vector<double>&row_factors = row_means, &column_factors = column_means;
  for (size_t row = 0; row < rows; ++row) row_factors[row] = scale / std::sqrt(static_cast<double>(row_squares[row]) / mean);
  for (size_t column = 0; column < columns; ++column) {
    column_factors[column] = 1.0 / std::sqrt(static_cast<double>(column_squares[column]));
  }
  double squares = 0;
  for (size_t row = 0; row < rows; ++row) {
    const float* const gradient_row = g.read(row * columns, columns, gradients.data());
    double sum = 0;
    for (size_t column = 0; column < columns; ++column) {
      const double update = column_factors[column] * static_cast<double>(gradient_row[column]);
      sum += update * update;
    }
    squares += sum * row_factors[row] * row_factors[row];
  }
  const double rate = clipped_rate(config, squares, rows * columns);
  const double decay = 1.0 - config.lr * config.weight_decay;
  for (size_t row = 0; row < rows; ++row) {
    const double row_rate = rate * row_factors[row];
    const float* const gradient_row = g.read(row * columns, columns, gradients.data());
    float* const value_row = p.read(row * columns, columns, values.data());
    for (size_t column = 0; column < columns; ++column) {
      const double update = row_rate * column_factors[column] * static_cast<double>(gradient_row[column]);
      value_row[column] = static_cast<float>(static_cast<double>(value_row[column]) * decay - update);
    }
    p.write(row * columns, columns, value_row);
  }
}

void adafactor_update_vector(const AdafactorConfig& config, size_t n, const StoredFloats& g, const StoredFloats& p, float* squares) {
  if (n == 0) return;
  const double scale = config.grad_scale;
  std::vector<double> updates(n);
  std::vector<float> gradients(n), values(n);
  const float* const gradient_row = g.read(0, n, gradients.data());
  float* const value_row = p.read(0, n, values.data());
  for (size_t i = 0; i < n; ++i) {
    const double gradient = scale * static_cast<double>(gradient_row[i]);
    updates[i] = gradient * gradient + kFloor;
  }
  blend(beta2_of(config), updates, squares);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) {
    updates[i] = scale * static_cast<double>(gradient_row[i]) / std::sqrt(static_cast<double>(squares[i]));
    sum += updates[i] * updates[i];
  }
  const double rate = clipped_rate(config, sum, n), decay = 1.0 - config.lr * config.weight_decay;
  for (size_t i = 0; i < n; ++i) value_row[i] = static_cast<float>(static_cast<double>(value_row[i]) * decay - rate * updates[i]);
  p.write(0, n, value_row);
}

}  // namespace lowrank
