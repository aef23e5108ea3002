import { pipeline, type Readable } from 'node:stream';
import zlib from 'node:zlib';

/** A stream's bytes, unpacked by the file's second ending: 'gz', 'zst' or none. */
export function decompressed(stream: Readable, ending: string | undefined): AsyncIterable<Uint8Array> {
  if (ending === 'gz') return through(stream, zlib.createGunzip());
  if (ending !== 'zst') return stream;
  // Node has zstd from 22.15 on.
  const native = (zlib as { createZstdDecompress?: () => zlib.Gunzip }).createZstdDecompress;
  return native ? through(stream, native()) : unzstd(stream);
}

function through(stream: Readable, transform: zlib.Gunzip): AsyncIterable<Uint8Array> {
  // The callback takes the error; the iteration over `transform` throws it.
  return pipeline(stream, transform, () => undefined);
}

async function* unzstd(stream: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const ready: Uint8Array[] = [];
  const { Decompress } = await import('fzstd');
  const decoder = new Decompress((chunk) => ready.push(chunk));
  for await (const chunk of stream) {
    decoder.push(chunk);
    yield* ready.splice(0);
  }
  decoder.push(new Uint8Array(0), true);
  yield* ready.splice(0);
}
