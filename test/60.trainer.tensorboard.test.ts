import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32c } from '../lib/train/tensorboard.ts';
import { newFolder, randomRows, train } from './60.trainer.quadratic.ts';

/** The messages of a file of records, their lengths and CRCs checked. */
function messages(file: Buffer): Buffer[] {
  const found: Buffer[] = [];
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at));
    const message = file.subarray(at + 12, at + 12 + length);
    assert.equal(file.readUInt32LE(at + 8), mask(crc32c(file.subarray(at, at + 8))));
    assert.equal(file.readUInt32LE(at + 12 + length), mask(crc32c(message)));
    found.push(message);
    at += 16 + length;
  }
  return found;
}

const mask = (crc: number) => Number((BigInt((crc >>> 15) | (crc << 17)) + 0xa282ead8n) & 0xffffffffn);

/** The fields of a protocol buffer message: number and value (bytes, integer or float). */
function fields(message: Buffer): [number, Buffer | number][] {
  const found: [number, Buffer | number][] = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = message[at++] as number;
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const key = varint();
    const field = key >> 3;
    const kind = key & 7;
    if (kind === 0) {
      found.push([field, varint()]);
      continue;
    }
    const length = kind === 1 ? 8 : kind === 5 ? 4 : varint();
    const bytes = message.subarray(at, at + length);
    at += length;
    found.push([field, kind === 1 ? bytes.readDoubleLE() : kind === 5 ? bytes.readFloatLE() : bytes]);
  }
  return found;
}

describe("TensorBoard's event files", () => {
  it('have the checksum of RFC 3720', () => {
    assert.equal(crc32c(Buffer.from('123456789')), 0xe3069283);
    assert.equal(crc32c(Buffer.alloc(32)), 0x8a9136aa);
    assert.equal(crc32c(Buffer.alloc(0)), 0);
  });

  it("hold the log under Transformers' tags", async () => {
    const outputDir = newFolder();
    const { result } = await train({
      rows: randomRows(8, 50),
      evalRows: randomRows(3, 51),
      args: { outputDir, maxSteps: 300, loggingSteps: 150, evalStrategy: 'steps', evalSteps: 300, saveStrategy: 'no' },
    });
    const name = readdirSync(join(outputDir, 'runs')).find((file) => file.startsWith('events.out.tfevents.'));
    const [version, ...events] = messages(readFileSync(join(outputDir, 'runs', name as string))).map((message) => new Map(fields(message)));
    assert.equal(String(version?.get(3)), 'brain.Event:2');
    assert.equal(events.length, result.logHistory.length);
    const scalars = (event: Map<number, Buffer | number> | undefined) =>
      Object.fromEntries(
        fields(event?.get(5) as Buffer).map(([, value]) => {
          const [tag, number] = fields(value as Buffer);
          return [String(tag?.[1]), number?.[1]];
        }),
      );
    assert.equal(events[1]?.get(2), 300);
    assert.equal(scalars(events[1])['train/loss'], Math.fround(result.logHistory[1]?.loss as number));
    assert.equal(scalars(events[2])['eval/loss'], Math.fround(result.logHistory[2]?.evalLoss as number));
    assert.equal(scalars(events[3])['train/train_loss'], Math.fround(result.trainingLoss));
    await rm(outputDir, { recursive: true });
  });
});
