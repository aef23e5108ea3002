import { run } from '../kernels/checks.ts';
import { type NativeModel, type NativeQuantized, type NativeTensorData, native } from '../native.ts';

// Quantised weights as bitsandbytes stores them: see bitsandbytes_tensors.ts, which reads the same.

/** The tensors that a weight of a model is stored as; `sourceType`: what it was quantised from, by PyTorch's name. */
export async function packedTensors(model: NativeModel, weight: string, shape: number[], sourceType: string): Promise<NativeTensorData[]> {
  const quantized = await native().readQuantizedTensor(model, weight);
  return quantized.type === 'INT8' ? packed8bit(weight, shape, quantized) : packed4bit(weight, shape, quantized, sourceType);
}

function packed8bit(weight: string, shape: number[], { codes, absmax }: NativeQuantized): NativeTensorData[] {
  const module = weight.slice(0, -'.weight'.length);
  return [
    { name: weight, dtype: 'I8', shape, data: codes },
    floats(`${module}.SCB`, absmax as Float32Array),
    { name: `${module}.weight_format`, dtype: 'U8', shape: [], data: new Uint8Array(1) },
  ];
}

function packed4bit(weight: string, shape: number[], quantized: NativeQuantized, sourceType: string): NativeTensorData[] {
  const { type, blockSize, codes, absmax, nested } = quantized;
  const values = new Float32Array(16);
  run('codes4bit', type, values);
  const quantType = type.toLowerCase();
  const state = new TextEncoder().encode(stateJson(quantized, quantType, blockSize, shape, sourceType));
  const tensors: NativeTensorData[] = [
    { name: weight, dtype: 'U8', shape: [codes.length, 1], data: codes },
    floats(`${weight}.quant_map`, values),
    { name: `${weight}.quant_state.bitsandbytes__${quantType}`, dtype: 'U8', shape: [state.length], data: state },
  ];
  if (nested === undefined) return [...tensors, floats(`${weight}.absmax`, absmax as Float32Array)];
  return [
    ...tensors,
    { name: `${weight}.absmax`, dtype: 'U8', shape: [nested.codes.length], data: nested.codes },
    floats(`${weight}.nested_absmax`, nested.absmax),
    floats(`${weight}.nested_quant_map`, nested.map),
  ];
}

/** As Python's json.dumps has it, so that the bytes are those of bitsandbytes. */
function stateJson({ nested }: NativeQuantized, quantType: string, blockSize: number, shape: number[], sourceType: string): string {
  const parts = [
    `"quant_type": "${quantType}"`,
    `"blocksize": ${blockSize}`,
    `"dtype": ${JSON.stringify(sourceType)}`,
    `"shape": [${shape.join(', ')}]`,
  ];
  if (nested !== undefined) {
    parts.push(`"nested_blocksize": ${nested.blockSize}`, '"nested_dtype": "float32"', `"nested_offset": ${pythonFloat(nested.offset)}`);
  }
  return `{${parts.join(', ')}}`;
}

/** Python's repr of a float: the same digits as JavaScript's, with an exponent below 1e-4 and from 1e16 on. */
export function pythonFloat(value: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? 'NaN' : value > 0 ? 'Infinity' : '-Infinity';
  const magnitude = Math.abs(value);
  if (magnitude !== 0 && (magnitude < 1e-4 || magnitude >= 1e16)) {
    return value.toExponential().replace(/e([+-])(\d)$/, 'e$10$2');
  }
  const text = Object.is(value, -0) ? '-0' : String(value);
  return text.includes('.') ? text : `${text}.0`;
}

function floats(name: string, data: Float32Array): NativeTensorData {
  return { name, dtype: 'F32', shape: [data.length], data };
}
