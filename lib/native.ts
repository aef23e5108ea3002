import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { type ErrorCode, LowrankError } from './errors.ts';

// The contract with csrc/addon: this file alone loads the binary. Options are validated before they get here; native code
// checks shapes and file contents again and throws errors that carry `code`. Calls whose work grows with the model return promises; arrays given
// to one must stay as they are until it settles.

/** A value of a GGUF file's metadata. 64-bit integers beyond 2^53 are bigint. */
export type GgufValue = string | number | bigint | boolean | GgufValue[];

export interface NativeTensorInfo {
  name: string;
  /** Storage type: F32, BF16, F16, Q4_1, Q4_K, … */
  dtype: string;
  /** Row-major as in safetensors: [out, in] for a weight, GGUF's dimensions reversed. */
  shape: number[];
  bytes: number;
}

/** A memory-mapped safetensors or GGUF file. Stays usable by models that bound its tensors after close(). */
export interface NativeTensorFile {
  readonly path: string;
  readonly format: 'safetensors' | 'gguf';
  tensors(): NativeTensorInfo[];
  /** safetensors' __metadata__ (strings) or GGUF's key-value pairs; of those, the ones that take at most `mostBytes` in the file. */
  metadata(mostBytes?: number): Record<string, GgufValue>;
  /** Any float or block type as fp32. */
  read(name: string): Float32Array;
  /** The same on another thread. */
  readAsync(name: string): Promise<Float32Array>;
  /** The tensor's bytes from `begin` (default: the first) to before `end` (default: the last) as they lie in the file. */
  readRaw(name: string, begin?: number, end?: number): Uint8Array;
  close(): void;
}

export interface NativeTensorData {
  name: string;
  /** F32, BF16, F16, I64, I32, I8, U8 */
  dtype: string;
  shape: number[];
  data: ArrayBufferView;
}

/** A model's parameter as a tensor of a file. */
export interface NativeParameterData {
  name: string;
  /** Its name in the model. */
  parameter: string;
  /** Rounded to nearest even. */
  dtype: NativeFloatType;
}

export interface NativeRopeConfig {
  kind: 'default' | 'linear' | 'dynamic' | 'yarn' | 'llama3';
  theta: number;
  /** Rotated part of a head; even. */
  rotaryDim: number;
  factor?: number;
  maxPosition: number;
  originalMaxPosition?: number;
  lowFreqFactor?: number;
  highFreqFactor?: number;
  betaFast?: number;
  betaSlow?: number;
  attentionFactor?: number;
  mscale?: number;
  mscaleAllDim?: number;
  truncate?: boolean;
}

/**
 * What a forward keeps for its backward: all, what attention made and inputs, or the inputs of every so manieth layer, which with a folder lie in a
 * file there; or all in some layers, what attention made in some, and inputs in the others.
 */
export type NativeRetention =
  | { mode: 'all' | 'selective' | 'inputs'; every: number; folder?: string }
  | { mode: 'mixed'; all: number; selective: number; folder?: undefined };

/** The decoder as data: see csrc/model/config.h. */
export interface NativeModelConfig {
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  normEps: number;
  /** lm_head shares embed_tokens. */
  tiedHead: boolean;
  /** Biases on q, k and v; on o; on gate, up and down. */
  qkvBias: boolean;
  outputBias: boolean;
  mlpBias: boolean;
  /** Sliding window of each layer; 0: none. */
  windows: number[];
  rope: NativeRopeConfig;
}

/** Storage types that can be converted to. */
export type NativeComputeType = 'f32' | 'bf16';

export type NativeFloatType = 'F32' | 'BF16' | 'F16';

export type NativeQuantizedType = 'NF4' | 'FP4' | 'INT8';

/** How a weight is quantised; see csrc/ops/quantize_4bit.h and quantize_int8.h. */
export interface NativeQuantization {
  type: NativeQuantizedType;
  /** Weights that share a magnitude; INT8 has one for each row. */
  blockSize: number;
  /** Double quantisation. */
  nested: boolean;
  /** What weights are rounded to first. */
  source: NativeFloatType;
}

/** A matrix as bitsandbytes has it. */
export interface NativeQuantized {
  type: NativeQuantizedType;
  blockSize: number;
  /** Two weights a byte, INT8: one. */
  codes: Uint8Array;
  /** Of each block; also with `nested` where it was read from a model. */
  absmax?: Float32Array;
  nested?: NativeNestedAbsmax;
}

/** Magnitudes after double quantisation. */
export interface NativeNestedAbsmax {
  codes: Uint8Array;
  /** Of each `blockSize` codes. */
  absmax: Float32Array;
  /** What the 256 codes stand for. */
  map: Float32Array;
  blockSize: number;
  offset: number;
}

/** T packed tokens of several sequences; never padded. */
export interface NativeBatch {
  ids: Int32Array;
  /** Position of each token in its own sequence. */
  positions: Int32Array;
  /** Sequence i holds tokens starts[i] to starts[i + 1]; [0, …, T]. */
  starts: Int32Array;
}

export interface NativeTrainBatch extends NativeBatch {
  /** What each token is to predict, already shifted; -100: nothing. */
  targets: Int32Array;
}

export interface NativeLoss {
  nllSum: number;
  /** Supervised tokens. */
  tokens: number;
  /** Supervised tokens whose most likely prediction was the target. */
  correct: number;
}

export interface NativeLoraModule {
  /** e.g. model.layers.0.self_attn.q_proj */
  module: string;
  r: number;
  /** alpha / r, or alpha / sqrt(r) with rsLoRA. */
  scale: number;
  dropout: number;
}

interface NativeParameter {
  /** `${module}.lora_A.${adapter}`, `${module}.lora_B.${adapter}`, or the tensor's name in the safetensors files. */
  name: string;
  shape: number[];
  dtype: string;
  trainable: boolean;
  /** Whether it is used where it lies in its file. */
  inFile: boolean;
}

export interface NativeSampling {
  /** 0: greedy. */
  temperature: number;
  /** 0: off. */
  topK: number;
  /** 1: off. */
  topP: number;
  /** 0: off. */
  minP: number;
  /** 1: off. */
  repetitionPenalty: number;
  seed: number;
}

export interface NativeSampled {
  ids: Int32Array;
  /** Log-probability of each id under the model's own distribution (before temperature and filters). */
  logprobs: Float32Array;
}

/** Keys and values of `rows` sequences of up to `capacity` tokens each. */
export interface NativeCache {
  /**
   * Runs new tokens of some rows (row r's come from ids[starts[r]] to ids[starts[r + 1]]; a row without any is skipped), appends them
   * to the cache and samples one next token for each row that had some (-1 for the others). `step` numbers the draw.
   */
  decode(ids: Int32Array, starts: Int32Array, sampling: NativeSampling, step: number): Promise<NativeSampled>;
  dispose(): void;
}

export interface NativeModel {
  readonly config: NativeModelConfig;
  /** Every tensor the decoder needs, by its safetensors name, with its shape. */
  slots(): { name: string; shape: number[] }[];
  /**
   * Uses a file's tensor in place, in its storage type. `unpermuteHeads`: rows lie in interleaved-RoPE order for that many heads (as
   * in llama GGUFs) and are copied back to half-split order.
   */
  bind(slot: string, file: NativeTensorFile, tensor: string, unpermuteHeads?: number): Promise<void>;
  /** Copies values; matrices are stored as `dtype` (default F32), vectors always as F32. */
  setTensor(slot: string, data: Float32Array, dtype?: NativeFloatType): Promise<void>;
  /** Stores a slot's tensor as `dtype` from now on, in memory of its own; vectors always as F32. */
  convert(slot: string, dtype: NativeFloatType): Promise<void>;
  /** Of a model for planning: says in which type a slot's tensor would be stored, and whether in a mapped file. */
  describe(slot: string, dtype: string, inFile: boolean): void;
  /** Throws INVALID_CONFIG listing the slots without a tensor. */
  ready(): void;

  /** Adds an adapter with its LoRA modules, A and B zero; an active adapter's parameters take part in forward. */
  addAdapter(adapter: string, modules: NativeLoraModule[]): Promise<void>;
  /** Gives `adapter` its own fp32 copy of a base tensor, used in its place while the adapter is active (modules_to_save, biases). */
  addOverride(adapter: string, slot: string): Promise<void>;
  removeAdapter(adapter: string): void;
  setActiveAdapters(adapters: string[]): void;
  /** Marks which parameters receive gradients: adapters', and the model's own that trainBase() made. */
  setTrainable(names: string[]): void;
  /**
   * Makes these base tensors all that receives gradients, for training the model itself. They are copied into memory of the model's own where
   * they are not there yet, matrices as `dtype` and vectors as F32, and stay there; their files' pages are given back. A tied head is trained
   * by the embedding's name.
   */
  trainBase(names: string[], dtype: 'F32' | 'BF16'): Promise<void>;

  /**
   * What operands of the large products are rounded to, wherever the model runs from now on (sessions and caches keep what they were made
   * with); sums are fp32. 'bf16' throws INVALID_OPTION where the instruction-set level has none.
   */
  setCompute(compute: NativeComputeType): void;

  /** Base tensors, then adapters' parameters; overrides are named `${slot}.${adapter}`. */
  parameters(): NativeParameter[];
  /** fp32 copy of a parameter. */
  readParameter(name: string): Promise<Float32Array>;
  /** Into an adapter's parameter, or a base tensor that trainBase() made. What was read of one in BF16 has the same bits when it is written. */
  writeParameter(name: string, data: Float32Array): Promise<void>;
  /** The same from a tensor of a file, a few MiB at a time; its pages are given back. */
  loadParameter(name: string, file: NativeTensorFile, tensor: string): Promise<void>;
  /** A parameter's bytes in its storage type, from `begin` to before `end` or its last. */
  readBytes(name: string, begin: number, end: number): Uint8Array;

  /** Logits [T, vocabSize]. */
  logits(batch: NativeBatch): Promise<Float32Array>;
  /** Loss without gradients, dropout off. */
  evaluate(batch: NativeTrainBatch): Promise<NativeLoss>;
  createCache(rows: number, capacity: number): NativeCache;
  dispose(): void;
}

export interface NativeOptimizer {
  kind: 'adamw' | 'lion' | 'sgd' | 'adafactor' | 'muon';
  /** Of an element's states; 8: adamw and lion. */
  bits: 32 | 8;
  /** Most bytes of states in memory; more lie in a file in `folder`, which exists. */
  window?: number;
  folder?: string;
  /** muon's: what multiplies the learning rate of a matrix, torch's adjust_lr_fn; match_rms_adamw when left out. */
  adjustLr?: 'original' | 'match_rms_adamw' | 'spectral_unclamped';
}

export interface NativeUpdate {
  learningRate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  weightDecay: number;
  /** 0: no clipping. */
  maxGradNorm: number;
  /** sgd's and muon's; 0 when left out. */
  momentum?: number;
}

/** Gradients, optimizer state and workspace of a model's trainable parameters. */
export interface NativeSession {
  /**
   * Forward and backward of one micro-batch: adds gradScale · d(Σ nll) to the gradients. Give 1 / (supervised tokens of the whole step) to get the
   * mean over all of them. `step` and `micro` choose the dropout masks.
   */
  accumulate(batch: NativeTrainBatch, options: { gradScale: number; seed: number; step: number; micro: number }): Promise<NativeLoss>;
  /**
   * Clips and updates, then zeroes the gradients. A non-finite norm updates nothing: `skipped`. `noDecay` names parameters without
   * weight decay.
   */
  update(options: NativeUpdate): Promise<{ gradNorm: number; skipped: boolean }>;
  zeroGradients(): Promise<void>;
  readGradient(name: string): Promise<Float32Array>;
  /** Updates so far: AdamW's t. */
  optimizerStep: number;
  /** The tensors of the optimizer's state, named `${state}.${parameter}`; dtype F32 or U8. */
  optimizerStates(): { name: string; dtype: string; shape: number[] }[];
  /** Writes them all into a safetensors file, like writeSafetensors(); one is in memory at a time. */
  saveOptimizer(path: string, metadata: Record<string, string>): Promise<void>;
  /** Sets one of them to the bytes of a file's tensor of its name. */
  loadOptimizer(name: string, file: NativeTensorFile): Promise<void>;
  /** Like the model's, in the memory of the session: evaluating within a training takes no more. */
  evaluate(batch: NativeTrainBatch): Promise<NativeLoss>;
  dispose(): void;
}

interface NativeSystemInfo {
  isa: string;
  isaLevels: string[];
  /** Whether setCompute('bf16') can be had. */
  bf16: boolean;
  /** The faster of the types that can be had here. */
  computeType: NativeComputeType;
  threads: number;
  /** Peak resident bytes of this process so far. */
  peakMemory: number;
  compiler: string;
}

/** An op that timeOp knows, and those of its sizes that it reads; see csrc/addon/timed_ops.cpp. */
export interface NativeTimedOp {
  op: string;
  /** Storage type of its weight: BF16 unless said. */
  weight?: string;
  tokens?: number;
  in?: number;
  out?: number;
  group?: number;
  rank?: number;
  sequences?: number;
  heads?: number;
  kvHeads?: number;
  headDim?: number;
}

export interface NativeAddon {
  systemInfo(): NativeSystemInfo;
  openTensorFile(path: string): NativeTensorFile;
  /** The same on another thread: a large header may have to come from the disk. */
  openTensorFileAsync(path: string): Promise<NativeTensorFile>;
  /** Writes to a temporary name beside `path`, fsyncs and renames. */
  writeSafetensors(path: string, tensors: NativeTensorData[], metadata: Record<string, string>): Promise<void>;
  /** The same of a model's parameters, which do not pass through JavaScript's memory, and of other tensors beside them. */
  writeParameters(
    model: NativeModel,
    path: string,
    parameters: NativeParameterData[],
    metadata: Record<string, string>,
    others?: NativeTensorData[],
  ): Promise<void>;
  /** For planning: without any memory, its slots are described and its adapters have shapes alone. */
  createModel(config: NativeModelConfig, forPlanning?: boolean): NativeModel;
  /** Like bind(), but stores a matrix as codes in memory of its own; the file's pages are given back. */
  quantizeTensor(
    model: NativeModel,
    slot: string,
    file: NativeTensorFile,
    tensor: string,
    unpermuteHeads: number,
    options: NativeQuantization,
  ): Promise<void>;
  /** Stores a matrix as bitsandbytes' codes and magnitudes; the codes may lie in a file, whose pages are given back. */
  setQuantizedTensor(
    model: NativeModel,
    slot: string,
    weight: Omit<NativeQuantized, 'codes'> & { codes: Uint8Array | { file: NativeTensorFile; tensor: string } },
  ): Promise<void>;
  /** The same back, byte for byte. */
  readQuantizedTensor(model: NativeModel, slot: string): Promise<NativeQuantized>;
  createSession(
    model: NativeModel,
    options: {
      maxTokens: number;
      keep: NativeRetention;
      noDecay: readonly string[];
      optimizer?: NativeOptimizer;
      /** Of the random rounding of parameters in BF16; 0 when left out. */
      seed?: number;
    },
  ): NativeSession;
  /** What a session of this kind would hold, in bytes by component (csrc/train/memory_plan.h), before anything is allocated. */
  planSession(
    model: NativeModel,
    options: { maxTokens: number; keep: NativeRetention; optimizer?: NativeOptimizer },
  ): Record<string, number>;
  /** The same of the evaluation of a batch of so many tokens. */
  planEvaluation(model: NativeModel, tokens: number): Record<string, number>;
  /** And of a generation: a cache of `rows` of `capacity` tokens, with so many tokens that run at once. */
  planGeneration(model: NativeModel, rows: number, capacity: number, tokens: number): Record<string, number>;
  /** Of all threads of the pool at the level in use, in registers; bf16 where the level has an instruction for it. */
  measurePeaks(): Promise<{ flopsPerSecond: number; bf16FlopsPerSecond?: number }>;
  /** Seconds of one pass that only reads, writes and updates in place so many bytes, from whichever cache holds them all. */
  timeTraffic(read: number, written: number, updated: number): Promise<number>;
  /** Seconds of each kind of op in training steps since the last call; `on`: gather from now on. */
  profileOps(on: boolean): Record<string, number>;
  /** Seconds of one op on random operands, best of several, all threads. */
  timeOp(op: NativeTimedOp, bf16: boolean): Promise<number>;
  /** Seconds of Y[m,n] = X[m,k]·W[n,k]ᵀ in OpenBLAS, best of several, where its shared library is installed; else null. */
  timeOpenblas(m: number, n: number, k: number): Promise<number | null>;
  kernels: Record<string, (...args: never[]) => unknown>;
}

function load(): NativeAddon {
  const root = fileURLToPath(new URL('..', import.meta.url));
  try {
    return createRequire(import.meta.url)('node-gyp-build')(root) as NativeAddon;
  } catch (cause) {
    throw new LowrankError(
      'NATIVE_NOT_FOUND',
      `no native binary of lowrank fits ${process.platform}-${process.arch} (Node ${process.versions.node}); build it with: npx lowrank build`,
      { cause },
    );
  }
}

let addon: NativeAddon | undefined;
let baseline = 0;

/** The native addon, loaded at first use. */
export function native(): NativeAddon {
  if (addon === undefined) {
    addon = load();
    baseline = process.memoryUsage.rss();
  }
  return addon;
}

/** Resident bytes of this process when the addon was loaded: Node.js, this package, and what the program had until then. */
export function baselineMemory(): number {
  native();
  return baseline;
}

/** A native error (which carries `code`) as a LowrankError; others pass through. */
export function fromNative(error: unknown): unknown {
  if (error instanceof LowrankError || !(error instanceof Error)) return error;
  const code = (error as { code?: unknown }).code;
  if (typeof code === 'string' && /^[A-Z_]+$/.test(code) && 'lowrank' in error) {
    return new LowrankError(code as ErrorCode, error.message, { cause: error });
  }
  return error;
}

/** Runs a native call and turns its errors into LowrankErrors. */
export function call<T>(run: () => T): T {
  try {
    const result = run();
    if (result instanceof Promise) return result.catch((error: unknown) => Promise.reject(fromNative(error))) as T;
    return result;
  } catch (error) {
    throw fromNative(error);
  }
}
