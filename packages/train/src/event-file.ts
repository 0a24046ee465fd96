import { closeSync, openSync, readdirSync, writeSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { crc32c } from './crc32c.js';
import { writing } from './written-file.js';

/**
 * Scalars for TensorBoard: a TFRecord file of `tensorflow.Event` messages, written as they come.
 *
 * A run that goes on starts another file of the same folder, whose first record tells TensorBoard to forget the steps
 * that are repeated.
 */
export class EventFile implements Disposable {
  readonly path: string;
  #file: number | undefined;

  /** `firstStep` is the first step that will be written. */
  constructor(folder: string, firstStep: number) {
    const seconds = Math.floor(Date.now() / 1000);
    // TensorBoard reads the files of a folder in the order of their names, so a run's number comes behind the time.
    const earlier = readdirSync(folder).filter((name) => name.startsWith('events.out.tfevents.')).length;
    this.path = join(folder, `events.out.tfevents.${seconds}.${hostname()}.${process.pid}.${earlier}`);
    this.#file = writing(this.path, () => openSync(this.path, 'wx'));
    this.#write([...double(1, now()), ...text(3, 'brain.Event:2')]);
    this.#write([...double(1, now()), ...varint(2, firstStep), ...message(7, varint(1, SESSION_START))]);
  }

  /** Writes some scalars of one step. */
  write(step: number, scalars: Record<string, number>): void {
    const values = Object.entries(scalars).flatMap(([tag, value]) =>
      message(1, [...text(1, tag), ...float(2, value)]),
    );
    this.#write([...double(1, now()), ...varint(2, step), ...message(5, values)]);
  }

  #write(event: number[]): void {
    const file = this.#file;
    if (file !== undefined) writing(this.path, () => writeSync(file, frame(Uint8Array.from(event))));
  }

  close(): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

const SESSION_START = 1;

/** Length, its checksum, the bytes, their checksum. */
function frame(bytes: Uint8Array): Uint8Array {
  const record = new Uint8Array(bytes.length + 16);
  const view = new DataView(record.buffer);
  view.setBigUint64(0, BigInt(bytes.length), true);
  view.setUint32(8, masked(record.subarray(0, 8)), true);
  record.set(bytes, 12);
  view.setUint32(12 + bytes.length, masked(bytes), true);
  return record;
}

/** TFRecord's checksum: a CRC of data that hold CRCs themselves is a weak one, so it is turned and shifted. */
function masked(bytes: Uint8Array): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

const now = () => Date.now() / 1000;

// Fields of protocol buffers, as their numbers and wire types.

function key(field: number, wireType: number): number[] {
  return [(field << 3) | wireType];
}

function varint(field: number, value: number): number[] {
  return [...key(field, 0), ...variable(value)];
}

function variable(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 128) {
    bytes.push((rest % 128) | 128);
    rest = Math.floor(rest / 128);
  }
  return [...bytes, rest];
}

function double(field: number, value: number): number[] {
  return [...key(field, 1), ...new Uint8Array(Float64Array.of(value).buffer)];
}

function float(field: number, value: number): number[] {
  return [...key(field, 5), ...new Uint8Array(Float32Array.of(value).buffer)];
}

function message(field: number, bytes: number[]): number[] {
  return [...key(field, 2), ...variable(bytes.length), ...bytes];
}

function text(field: number, value: string): number[] {
  return message(field, [...new TextEncoder().encode(value)]);
}
