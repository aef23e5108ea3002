/**
 * The ops of lowrank over typed arrays, each as its own function: synchronous, on the native thread pool, shapes checked. Arrays are row-major fp32;
 * a weight may also be bytes in a storage type. A wrong shape throws a LowrankError SHAPE_MISMATCH.
 *
 * @example
 * import { gemm } from 'lowrank/kernels';
 * const c = gemm({ a: new Float32Array([1, 2]), b: new Float32Array([3, 4]), m: 1, n: 1, k: 2 });   // [11]
 *
 * @module
 */
export {
  type AttentionBackwardOptions,
  type AttentionOptions,
  attention,
  attentionBackward,
  type RopeOptions,
  rope,
  ropeFrequencies,
  ropeTable,
} from './kernels/attention.ts';
export type { Weight } from './kernels/checks.ts';
export {
  type DropoutOptions,
  dropout,
  type RmsNormBackwardOptions,
  type RmsNormOptions,
  rmsNorm,
  rmsNormBackward,
  type SwigluOptions,
  swiglu,
  swigluBackward,
} from './kernels/elementwise.ts';
export {
  type EmbeddingOptions,
  embedding,
  embeddingBackward,
  type LinearCrossEntropyOptions,
  type LinearCrossEntropyResult,
  linearCrossEntropy,
} from './kernels/head.ts';
export {
  dequantize,
  type GemmOptions,
  gemm,
  type Lora,
  type LoraLinearBackwardOptions,
  type LoraLinearOptions,
  type LoraProjection,
  type LoraProjectionGradients,
  loraLinear,
  loraLinearBackward,
} from './kernels/linear.ts';
export {
  type AdamWOptions,
  adamW,
  gradNorm,
  type MuonOptions,
  muon,
  type OptimizerUpdate8bitOptions,
  optimizerUpdate8bitBlockwise,
} from './kernels/optimizer.ts';
export {
  createDynamicMap,
  dequantize4bit,
  dequantizeBlockwise,
  int8VectorwiseDequant,
  int8VectorwiseQuant,
  type Quantize4bitOptions,
  type QuantizeBlockwiseOptions,
  type Quantized4bitState,
  type QuantizedBlockwiseState,
  type QuantizedRows,
  type QuantType,
  quantize4bit,
  quantizeBlockwise,
} from './kernels/quantize.ts';
