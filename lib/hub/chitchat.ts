import { dirname, join } from 'node:path';
import { WorkerFailure, WorkerThread } from '../threads/worker_thread.ts';
import { userCacheFolder } from './user_cache.ts';
import { type FetchOptions, fetchFromWheel, type WheelFile } from './wheel.ts';

const kWheel: WheelFile = {
  requirement: 'chitchat-dataset==0.9.0',
  wheelBytes: 8_105_664,
  wheelSha256: '7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e',
  member: 'chitchat_dataset/dataset.json',
  memberBytes: 40_303_934,
};

async function toJsonl(member: string): Promise<string> {
  const path = join(dirname(member), 'chitchat.jsonl');
  const thread = new WorkerThread('hub/chitchat_worker', { heapMegabytes: 1024 });
  try {
    await thread.request({ from: member, to: path });
  } finally {
    thread.kill(new WorkerFailure('done'));
  }
  return path;
}

/**
 * Path of the Chit Chat Challenge dialogues (MIT; people talking about anything) as JSONL of `{messages}` in the user's cache
 * folder; 8 MB are downloaded from PyPI at the first call. Dialogues in which nobody answers are left out.
 * Throws IO_ERROR where Python, pip or the network is missing, saying how to get it.
 */
export function fetchChitchat(options: FetchOptions = {}): Promise<string> {
  return fetchFromWheel(kWheel, join(userCacheFolder(), 'datasets', 'chitchat.jsonl'), options, toJsonl);
}
