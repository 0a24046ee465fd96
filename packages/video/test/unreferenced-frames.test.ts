import { AV_CODEC_ID_H264, AV_CODEC_ID_HEVC, AV_CODEC_ID_VP9 } from 'node-av/constants';
import { expect, test } from 'vitest';
import { unreferencedTest } from '../dist/unreferenced-frames.js';

const avcC = Uint8Array.of(1, 100, 0, 40, 0xff);
const hvcC = new Uint8Array(23).fill(1, 0, 1).fill(3, 21, 22);

/** A packet of units, each behind its length in four bytes. */
function packet(...units: number[][]): Uint8Array {
  return Uint8Array.from(units.flatMap((unit) => [0, 0, 0, unit.length, ...unit]));
}

test('H.264: slices whose nal_ref_idc is 0, with delimiters and supplemental information', () => {
  const isUnreferenced = unreferencedTest(AV_CODEC_ID_H264, avcC);
  expect(isUnreferenced?.(packet([0x01, 0x9a]))).toBe(true);
  expect(isUnreferenced?.(packet([0x09, 0xf0], [0x06, 0x05], [0x01, 0x9a], [0x01, 0x22]))).toBe(true);
  expect(isUnreferenced?.(packet([0x41, 0x9a]))).toBe(false);
  expect(isUnreferenced?.(packet([0x65, 0x88]))).toBe(false);
  // One field refers to the other, a parameter set is for later frames, and delimiters alone are no frame.
  expect(isUnreferenced?.(packet([0x01, 0x9a], [0x41, 0x9a]))).toBe(false);
  expect(isUnreferenced?.(packet([0x68, 0xee], [0x01, 0x9a]))).toBe(false);
  expect(isUnreferenced?.(packet([0x09, 0xf0]))).toBe(false);
});

test('HEVC: types that none of their layer refers to, in the base layer', () => {
  const isUnreferenced = unreferencedTest(AV_CODEC_ID_HEVC, hvcC);
  const unit = (type: number, layer = 0) => [(type << 1) | (layer >> 5), ((layer & 31) << 3) | 1, 0x80];
  for (const type of [0, 2, 4, 6, 8]) expect(isUnreferenced?.(packet(unit(type)))).toBe(true);
  for (const type of [1, 3, 9, 10, 16, 19, 21, 32, 33, 34])
    expect(isUnreferenced?.(packet(unit(type)))).toBe(false);
  expect(isUnreferenced?.(packet(unit(35), unit(39), unit(0), unit(40)))).toBe(true);
  expect(isUnreferenced?.(packet(unit(0), unit(0, 1)))).toBe(false);
});

test('the decoder sees what is broken, and what is not known', () => {
  const isUnreferenced = unreferencedTest(AV_CODEC_ID_H264, avcC);
  expect(isUnreferenced?.(new Uint8Array())).toBe(false);
  expect(isUnreferenced?.(packet([0x01, 0x9a]).subarray(0, 5))).toBe(false);
  expect(isUnreferenced?.(Uint8Array.of(...packet([0x01, 0x9a]), 0))).toBe(false);
  expect(isUnreferenced?.(Uint8Array.of(0xff, 0xff, 0xff, 0xff, 0x01, 0x9a))).toBe(false);
  expect(isUnreferenced?.(Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 2, 0x01, 0x9a))).toBe(false);
  expect(unreferencedTest(AV_CODEC_ID_H264, Uint8Array.of(0, 0, 0, 1, 0x67))).toBeUndefined();
  expect(unreferencedTest(AV_CODEC_ID_H264, null)).toBeUndefined();
  expect(unreferencedTest(AV_CODEC_ID_VP9, avcC)).toBeUndefined();
});
