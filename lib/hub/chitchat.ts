import { readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import type { Message } from '../types.ts';
import { userCacheFolder } from './user_cache.ts';
import { type FetchOptions, fetchFromWheel, type WheelFile } from './wheel.ts';

const kWheel: WheelFile = {
  requirement: 'chitchat-dataset==0.9.0',
  wheelBytes: 8_105_664,
  wheelSha256: '7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e',
  member: 'chitchat_dataset/dataset.json',
  memberBytes: 40_303_934,
};

/** dataset.json of the wheel: dialogues by id; a turn is the run of messages that one person sent before the other spoke. */
type Dialogues = Record<string, { messages: { text: string; sender: string }[][] }>;

/** A dialogue as a conversation: who speaks first is the user, consecutive turns of one person are joined, and the end is an answer. */
function toConversation(turns: { text: string; sender: string }[][]): Message[] {
  const first = turns[0]?.[0]?.sender;
  const messages: { role: string; content: string }[] = [];
  for (const turn of turns) {
    const content = turn
      .map((message) => message.text.trim())
      .filter(Boolean)
      .join(' ');
    const role = turn[0]?.sender === first ? 'user' : 'assistant';
    const last = messages.at(-1);
    if (content === '') continue;
    if (last?.role === role) last.content += ` ${content}`;
    else if (last !== undefined || role === 'user') messages.push({ role, content });
  }
  if (messages.at(-1)?.role === 'user') messages.pop();
  return messages;
}

async function toJsonl(member: string): Promise<string> {
  const dialogues = JSON.parse(await readFile(member, 'utf8')) as Dialogues;
  const rows = Object.values(dialogues)
    .map((dialogue) => toConversation(dialogue.messages))
    .filter((messages) => messages.length > 0);
  const path = join(dirname(member), 'chitchat.jsonl');
  await writeFile(path, rows.map((messages) => `${JSON.stringify({ messages })}\n`).join(''));
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
