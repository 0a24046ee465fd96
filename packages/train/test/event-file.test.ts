import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { crc32c } from '../dist/crc32c.js';
import { EventFile } from '../dist/event-file.js';
import { temporaryFolder } from './temporary-folder.js';

const folder = temporaryFolder();

describe('crc32c', () => {
  // RFC 3720, B.4, and the check value of the algorithm's catalogue.
  for (const [bytes, crc] of [
    [new Uint8Array(32), 0x8a9136aa],
    [new Uint8Array(32).fill(255), 0x62a8ab43],
    [Uint8Array.from({ length: 32 }, (_, index) => index), 0x46dd794e],
    [new TextEncoder().encode('123456789'), 0xe3069283],
    [new Uint8Array(0), 0],
  ] as const) {
    it(`of ${bytes.length} bytes is ${crc.toString(16)}`, () => expect(crc32c(bytes)).toBe(crc));
  }
});

interface Event {
  step: number;
  version?: string;
  started?: boolean;
  scalars: Record<string, number>;
}

/** Reads a file as TensorBoard does: record by record, every checksum looked at. */
function readEvents(path: string): Event[] {
  const bytes = readFileSync(path);
  const events: Event[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at));
    expect(bytes.readUInt32LE(at + 8)).toBe(mask(crc32c(bytes.subarray(at, at + 8))));
    const data = bytes.subarray(at + 12, at + 12 + length);
    expect(bytes.readUInt32LE(at + 12 + length)).toBe(mask(crc32c(data)));
    events.push(readEvent(data));
    at += 16 + length;
  }
  return events;
}

function mask(crc: number): number {
  const turned = BigInt(((crc >>> 15) | (crc << 17)) >>> 0);
  return Number((turned + 0xa282ead8n) & 0xffffffffn);
}

function readEvent(data: Buffer): Event {
  const event: Event = { step: 0, scalars: {} };
  for (const [field, value] of fields(data)) {
    if (field === 2) event.step = Number(value);
    if (field === 3) event.version = (value as Buffer).toString();
    if (field === 7)
      event.started = fields(value as Buffer).some(([key, status]) => key === 1 && status === 1n);
    if (field !== 5) continue;
    for (const [, summary] of fields(value as Buffer)) {
      const parts = new Map(fields(summary as Buffer));
      event.scalars[(parts.get(1) as Buffer).toString()] = (parts.get(2) as Buffer).readFloatLE();
    }
  }
  return event;
}

function fields(data: Buffer): [number, bigint | Buffer][] {
  const found: [number, bigint | Buffer][] = [];
  let at = 0;
  const varint = () => {
    let [value, shift] = [0n, 0n];
    for (;;) {
      const byte = data[at++] as number;
      value |= BigInt(byte & 127) << shift;
      shift += 7n;
      if (byte < 128) return value;
    }
  };
  const take = (length: number) => {
    at += length;
    return data.subarray(at - length, at);
  };
  while (at < data.length) {
    const key = Number(varint());
    const [field, type] = [key >> 3, key & 7];
    found.push([field, type === 0 ? varint() : take(type === 1 ? 8 : type === 5 ? 4 : Number(varint()))]);
  }
  return found;
}

describe('event files', () => {
  it('hold what was written', () => {
    using file = new EventFile(folder, 1);
    file.write(1, { 'train/loss': 2.5, rate: 1e-3 });
    file.write(300, { 'train/loss': 0.125, 'größe/µ': -1 });
    file.write(2 ** 40, {});
    file.close();
    file.write(7, { late: 1 });
    const events = readEvents(file.path);
    expect(events.map(({ step }) => step)).toEqual([0, 1, 1, 300, 2 ** 40]);
    expect(events[0]?.version).toBe('brain.Event:2');
    expect(events[1]?.started).toBe(true);
    expect(events[2]?.scalars).toEqual({ 'train/loss': 2.5, rate: Math.fround(1e-3) });
    expect(events[3]?.scalars).toEqual({ 'train/loss': 0.125, 'größe/µ': -1 });
  });

  it('of a run that goes on come behind the earlier ones', () => {
    using later = new EventFile(folder, 41);
    const names = readdirSync(folder).sort();
    expect(later.path.endsWith(names.at(-1) as string)).toBe(true);
    expect(readEvents(later.path)[1]).toMatchObject({ step: 41, started: true });
  });
});
