import { expect, it } from 'vitest';
import { isErrorCode, LlamaVidError } from '../src/index.js';

it('carries code, message, hint and cause', () => {
  const cause = new Error('below');
  const error = new LlamaVidError('MEDIA_NOT_FOUND', 'no.mp4: no such file', { hint: 'Check the path.', cause });
  expect(error).toBeInstanceOf(Error);
  expect(error).toMatchObject({ name: 'LlamaVidError', code: 'MEDIA_NOT_FOUND', hint: 'Check the path.', cause });
  expect(String(error)).toBe('LlamaVidError: no.mp4: no such file');
});

it('tells its own from others', () => {
  expect(LlamaVidError.is(new LlamaVidError('ABORTED', 'stopped'))).toBe(true);
  expect(LlamaVidError.is(new Error('other'))).toBe(false);
  expect(isErrorCode('NOT_A_CODE')).toBe(false);
});
