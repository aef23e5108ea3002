// The public API of lowrank. What is not exported here may change without notice.

export { Dataset, splitDataset } from './data/dataset.ts';
export { loadDataset } from './data/load.ts';
export type { LoadDatasetOptions, SplitOptions } from './data/load_options.ts';
export { type ErrorCode, LowrankError } from './errors.ts';
export type { DownloadProgress } from './hub/user_cache.ts';
export type { Batch, InputBatch } from './model/batch.ts';
export { CausalLM, type ParameterInfo } from './model/causal_lm.ts';
export type { Generated, Prompt, StreamedToken } from './model/generation.ts';
export type { LossAndGradients } from './model/gradients.ts';
export type { FromConfigOptions, LoadOptions } from './model/load_options.ts';
export { type GetPeftModelOptions, getPeftModel, type PeftLoadOptions, PeftModel, type PeftSaveOptions } from './model/peft_model.ts';
export type { SaveOptions } from './model/save_options.ts';
export { Tensor } from './model/tensor.ts';
export type { DataSource } from './options/data_source.ts';
export type { GenerateOptions } from './options/generate_options.ts';
export type { LoraConfig } from './options/lora_config.ts';
export type { TrainerOptions } from './options/trainer_options.ts';
export type { TrainingArguments } from './options/training_arguments.ts';
export { type SystemInfo, systemInfo } from './system.ts';
export type { ChatTemplateOptions, DecodeOptions, EncodeOptions } from './tokenizer/options.ts';
export { Tokenizer } from './tokenizer/tokenizer.ts';
export type { TrainerCallback, TrainerControl, TrainingStep } from './train/callbacks.ts';
export type { EvaluationMetrics } from './train/evaluation.ts';
export { LoraTrainer, type TrainingMemory } from './train/trainer.ts';
export type { LogEntry, TrainerState } from './train/trainer_state.ts';
export type { TrainResult } from './train/training_run.ts';
export type { Message, TokenRow } from './types.ts';
