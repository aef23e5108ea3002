/** What `print` writes to stdout, by whichever way. */
export function linePrinted(print: () => void): string {
  const original = process.stdout.write;
  const log = console.log;
  let text = '';
  process.stdout.write = ((chunk: string | Uint8Array) => {
    text += chunk.toString();
    return true;
  }) as typeof process.stdout.write;
  console.log = (...values: unknown[]) => {
    text += `${values.join(' ')}\n`;
  };
  try {
    print();
  } finally {
    process.stdout.write = original;
    console.log = log;
  }
  return text.trim();
}
