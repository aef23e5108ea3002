const SURROGATES = /[\uD800-\uDBFF][\uDC00-\uDFFF]/;

/**
 * Turns offsets that count code points of `text` into UTF-16 units, in place. `offsets` holds start and end of each token by turns.
 */
export function toUtf16Offsets(text: string, offsets: Int32Array): void {
  if (!SURROGATES.test(text)) return;
  const units = new Int32Array(text.length + 1);
  let point = 0;
  for (let unit = 0; unit < text.length; point++) {
    units[point] = unit;
    unit += (text.codePointAt(unit) as number) > 0xffff ? 2 : 1;
  }
  units[point] = text.length;
  for (let i = 0; i < offsets.length; i++) offsets[i] = units[Math.min(offsets[i] as number, point)] as number;
}
