import { LowrankError, shown, suggestion } from '../errors.ts';
import { call, native } from '../native.ts';

/** A weight matrix: fp32 values, or the bytes of rows in a storage type (F32, F16, BF16 or a GGUF block type such as Q4_K). */
export type Weight = Float32Array | { dtype: string; data: Uint8Array };

/** A weight as the native side takes it: bytes, storage type, rows, columns. */
export type NativeWeight = [data: Uint8Array, dtype: string, rows: number, columns: number];

type NumericArray = Float32Array | Int32Array | Uint8Array;

function mismatch(message: string): LowrankError {
  return new LowrankError('SHAPE_MISMATCH', message);
}

function kindOf(value: unknown): string {
  if (ArrayBuffer.isView(value)) {
    const length = (value as Partial<NumericArray>).length;
    return length === undefined ? value.constructor.name : `${value.constructor.name} of ${length} elements`;
  }
  return shown(value);
}

/** The arguments of one call to a kernel: each check names the kernel, the argument, what was found and what was expected. */
export class Checks {
  readonly #kernel: string;

  constructor(kernel: string, options: object, known: readonly string[]) {
    this.#kernel = kernel;
    if (options === null || typeof options !== 'object') {
      throw new LowrankError('INVALID_OPTION', `${kernel}: the argument is ${shown(options)}; expected an object`);
    }
    for (const name of Object.keys(options)) {
      if (known.includes(name)) continue;
      const near = suggestion(name, known);
      throw new LowrankError(
        'UNKNOWN_OPTION',
        `${kernel} has no argument '${name}'${near === undefined ? `; it takes ${known.join(', ')}` : `; did you mean '${near}'?`}`,
      );
    }
  }

  /** A dimension: a whole number of at least `minimum`. */
  dimension(name: string, value: number, minimum = 0): number {
    if (!Number.isSafeInteger(value) || value < minimum) {
      throw mismatch(`${this.#kernel}: ${name} is ${shown(value)}; expected a whole number of at least ${minimum}`);
    }
    return value;
  }

  /** An option that is a whole number, such as a seed. */
  whole(name: string, value: number, minimum = 0): number {
    if (!Number.isSafeInteger(value) || value < minimum) this.#refuse(name, value, `a whole number of at least ${minimum}`);
    return value;
  }

  /** A finite number in [minimum, below). */
  number(name: string, value: number, minimum = -Infinity, below = Infinity): number {
    if (typeof value !== 'number' || !Number.isFinite(value) || value < minimum || value >= below) {
      const range = minimum === -Infinity ? '' : below === Infinity ? ` of at least ${minimum}` : ` in [${minimum}, ${below})`;
      this.#refuse(name, value, `a number${range}`);
    }
    return value;
  }

  flag(name: string, value: boolean): boolean {
    if (typeof value !== 'boolean') this.#refuse(name, value, 'true or false');
    return value;
  }

  choice(name: string, value: string, choices: readonly string[]): void {
    if (!choices.includes(value)) this.#refuse(name, value, `one of ${choices.join(', ')}`);
  }

  /** fp32 values of `shape`. */
  floats(name: string, value: Float32Array, ...shape: number[]): Float32Array {
    return this.#array(Float32Array, 'Float32Array', name, value, shape);
  }

  /** int32 values of `shape`. */
  ints(name: string, value: Int32Array, ...shape: number[]): Int32Array {
    return this.#array(Int32Array, 'Int32Array', name, value, shape);
  }

  /** Bytes. */
  bytes(name: string, value: Uint8Array, length: number): Uint8Array {
    return this.#array(Uint8Array, 'Uint8Array', name, value, [length]);
  }

  /** A list of objects, as each of which `read` takes one. */
  list<T, R>(name: string, value: readonly T[], read: (item: T, name: string) => R): R[] {
    if (!Array.isArray(value)) throw mismatch(`${this.#kernel}: ${name} is ${kindOf(value)}; expected an array`);
    return value.map((item: T, index) => read(item, `${name}[${index}]`));
  }

  /** A [rows, columns] matrix in any weight storage type. */
  weight(name: string, value: Weight, rows: number, columns: number): NativeWeight {
    if (value instanceof Float32Array) {
      const { buffer, byteOffset, byteLength } = this.floats(name, value, rows, columns);
      return [new Uint8Array(buffer, byteOffset, byteLength), 'F32', rows, columns];
    }
    if (value === null || typeof value !== 'object' || typeof value.dtype !== 'string') {
      throw mismatch(`${this.#kernel}: ${name} is ${kindOf(value)}; expected a Float32Array or { dtype, data }`);
    }
    const { dtype, data } = value;
    const bytes = rows * (run('rowBytes', dtype, columns) as number);
    if (!(data instanceof Uint8Array) || data.length !== bytes) {
      throw mismatch(
        `${this.#kernel}: ${name}.data is ${kindOf(data)}; expected a Uint8Array of ${bytes} bytes (${rows} x ${columns} ${dtype})`,
      );
    }
    return [data, dtype, rows, columns];
  }

  /** fp32 zeros of `shape`, for a result. */
  allocate(...shape: number[]): Float32Array<ArrayBuffer> {
    const length = shape.reduce((product, size) => product * size, 1);
    try {
      return new Float32Array(length);
    } catch (cause) {
      throw new LowrankError('OUT_OF_MEMORY', `${this.#kernel}: no memory for a result of ${shape.join(' x ')} numbers`, { cause });
    }
  }

  fail(message: string): never {
    throw mismatch(`${this.#kernel}: ${message}`);
  }

  #array<T extends NumericArray>(type: { new (length: number): T }, typeName: string, name: string, value: T, shape: number[]): T {
    const length = shape.reduce((product, size) => product * size, 1);
    if (value instanceof type && value.length === length) return value;
    const sizes = shape.length > 1 ? ` (${shape.join(' x ')})` : '';
    throw mismatch(`${this.#kernel}: ${name} is ${kindOf(value)}; expected a ${typeName} of ${length} elements${sizes}`);
  }

  #refuse(name: string, value: unknown, expected: string): never {
    throw new LowrankError('INVALID_OPTION', `${this.#kernel}: ${name} is ${shown(value)}; expected ${expected}`);
  }
}

/** Calls a native kernel with positional values that were checked. */
export function run(kernel: string, ...values: unknown[]): unknown {
  const function_ = native().kernels[kernel] as (...values: unknown[]) => unknown;
  return call(() => function_(...values));
}
