import { expect, test } from 'vitest';
import { type PacketTable, planPackets } from '../dist/decode-plan.js';

/** Packets by times in decoding order; `*` marks key packets, `-` hidden ones. Result: `.` drop, `r` reference, `S` sample. */
function plan(packets: string, ...wanted: number[]): string {
  const words = packets.split(' ');
  const table: PacketTable = {
    count: words.length,
    pts: Float64Array.from(words, (word) => Number.parseInt(word.replace(/[*-]+/, ''), 10)),
    key: Uint8Array.from(words, (word) => Number(word.includes('*'))),
    shown: Uint8Array.from(words, (word) => Number(!word.includes('-'))),
  };
  return Array.from(planPackets(table, new Set(wanted)), (step) => '.rS'[step]).join('');
}

test('a group without a sample is skipped, and what follows its last sample', () => {
  expect(plan('*0 2 1 3 *4 6 5 7 *8 10 9', 1, 8)).toBe('rrS.....S..');
});

test('leading frames of an open group need the group before', () => {
  expect(plan('*0 3 1 2 *7 5 6 9 8', 5)).toBe('rrrrrS...');
});

test('leading frames are dropped where the group before is not decoded', () => {
  expect(plan('*0 3 1 2 *7 5 6 9 8', 9)).toBe('....r..S.');
});

test('a hidden frame is no sample, though frames may refer to it', () => {
  expect(plan('*-0 -2 -1 3', 2, 3)).toBe('rrrS');
});
