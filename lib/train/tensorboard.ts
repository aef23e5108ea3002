// TensorBoard's event files, by hand: records of a length, its CRC, an Event message and its CRC, all little-endian.
//   Event { 1: double wall_time, 2: int64 step, 3: string file_version, 5: Summary { 1: Value { 1: string tag, 2: float simple_value } } }

const VERSION = 'brain.Event:2';
const CRC_POLYNOMIAL = 0x82f63b78; // CRC-32C (Castagnoli), reflected
const MASK_DELTA = 0xa282ead8;

const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; ++bit) crc = crc & 1 ? (crc >>> 1) ^ CRC_POLYNOMIAL : crc >>> 1;
  return crc;
});

/** CRC-32C of some bytes. */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (crcTable[(crc ^ byte) & 0xff] as number);
  return (crc ^ 0xffffffff) >>> 0;
}

/** The record that an event file begins with. */
export function versionRecord(seconds: number): Buffer {
  return record(Buffer.concat([doubleField(1, seconds), bytesField(3, Buffer.from(VERSION))]));
}

/** A record with a number for each tag. */
export function scalarRecord(seconds: number, step: number, scalars: Readonly<Record<string, number>>): Buffer {
  const values = Object.entries(scalars).map(([tag, value]) =>
    bytesField(1, Buffer.concat([bytesField(1, Buffer.from(tag)), floatField(2, value)])),
  );
  return record(Buffer.concat([doubleField(1, seconds), varintField(2, step), bytesField(5, Buffer.concat(values))]));
}

function record(event: Buffer): Buffer {
  const head = Buffer.alloc(12);
  head.writeBigUInt64LE(BigInt(event.length));
  head.writeUInt32LE(masked(head.subarray(0, 8)), 8);
  const tail = Buffer.alloc(4);
  tail.writeUInt32LE(masked(event));
  return Buffer.concat([head, event, tail]);
}

/** A CRC rotated and shifted, so that the CRC of data that holds CRCs is no special number. */
function masked(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + MASK_DELTA) >>> 0;
}

function doubleField(field: number, value: number): Buffer {
  const bytes = Buffer.alloc(9, (field << 3) | 1);
  bytes.writeDoubleLE(value, 1);
  return bytes;
}

function floatField(field: number, value: number): Buffer {
  const bytes = Buffer.alloc(5, (field << 3) | 5);
  bytes.writeFloatLE(value, 1);
  return bytes;
}

function varintField(field: number, value: number): Buffer {
  return Buffer.from([field << 3, ...varint(value)]);
}

function bytesField(field: number, content: Buffer): Buffer {
  return Buffer.concat([Buffer.from([(field << 3) | 2, ...varint(content.length)]), content]);
}

function varint(value: number): number[] {
  const bytes: number[] = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return [...bytes, value];
}
