import { describe, expect, it } from 'vitest';
import { TrimmedText } from '../src/trimmed-text.js';

function pushAll(pieces: string[]): { shown: string[]; whole: string } {
  const text = new TrimmedText();
  return { shown: pieces.map((piece) => text.push(piece)), whole: text.whole };
}

describe('TrimmedText', () => {
  it('never shows white space at the ends, however the text is cut', () => {
    const source = ' \n An old  man\t leaves. \n ';
    for (let first = 0; first <= source.length; first++) {
      for (let second = first; second <= source.length; second++) {
        const { shown, whole } = pushAll([source.slice(0, first), source.slice(first, second), source.slice(second)]);
        expect(whole).toBe('An old  man\t leaves.');
        expect(shown.join('')).toBe(whole);
      }
    }
  });

  it('strips what Python strips and nothing else', () => {
    expect(pushAll(['\x1c\x1f\x85a\x1d\u3000']).whole).toBe('a');
    expect(pushAll(['\ufeffa\x19\u200b']).whole).toBe('\ufeffa\x19\u200b');
  });

  it('shows nothing of white space alone', () => {
    expect(pushAll([' ', '\n', ' '])).toEqual({ shown: ['', '', ''], whole: '' });
  });
});
