import { readFileSync, writeFileSync } from 'node:fs';

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

function open(file: string): { header: Record<string, Entry>; data: Buffer } {
  const bytes = readFileSync(file);
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + length));
  delete header.__metadata__;
  return { header, data: bytes.subarray(8 + length) };
}

/** One tensor of a file, of 32 or 16 bits a number. */
export function readTensor(file: string, name: string): { shape: number[]; values: Float32Array } {
  const { header, data } = open(file);
  const entry = header[name];
  if (entry === undefined) throw new Error(`${file} has no tensor ${name}`);
  return { shape: entry.shape, values: numbers(entry, data) };
}

/** Rounds the weights of a file to f16 and leaves out what is no weight; `dtype` says how the rounded numbers are written. */
export function writeRounded(from: string, to: string, dtype: 'F16' | 'F32'): void {
  const { header, data } = open(from);
  const written: Record<string, Entry> = {};
  const parts: Buffer[] = [];
  let offset = 0;
  for (const [name, entry] of Object.entries(header)) {
    if (entry.dtype === 'I64') continue;
    const halves = Uint16Array.from(numbers(entry, data), toHalf);
    const values = dtype === 'F16' ? halves : Float32Array.from(halves, fromHalf);
    parts.push(Buffer.from(values.buffer));
    written[name] = { dtype, shape: entry.shape, data_offsets: [offset, offset + values.byteLength] };
    offset += values.byteLength;
  }
  const head = Buffer.from(JSON.stringify(written));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(head.length));
  writeFileSync(to, Buffer.concat([length, head, ...parts]));
}

function numbers({ dtype, data_offsets }: Entry, data: Buffer): Float32Array {
  // A copy, because the offsets of a file are not those of an array.
  const bytes = Uint8Array.from(data.subarray(...data_offsets)).buffer;
  if (dtype === 'F32') return new Float32Array(bytes);
  if (dtype === 'F16') return Float32Array.from(new Uint16Array(bytes), fromHalf);
  throw new Error(`the test does not read ${dtype}`);
}

function fromHalf(bits: number): number {
  const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** Nearest f16, for numbers as weights are: finite and below its largest. */
function toHalf(value: number): number {
  const sign = value < 0 ? 0x8000 : 0;
  const size = Math.abs(value);
  if (size < 2 ** -14) return sign | Math.round(size * 2 ** 24);
  const exponent = Math.floor(Math.log2(size));
  const fraction = Math.round((size / 2 ** exponent - 1) * 1024);
  return sign | (((exponent + 15) << 10) + fraction);
}
