import { expect, it } from 'vitest';
import { errorCodes, isErrorCode, LlamaVidError } from '../src/index.js';

it('carries code, message, hint and cause', () => {
  const cause = new Error('below');
  const error = new LlamaVidError('MEDIA_NOT_FOUND', 'no.mp4: no such file', {
    hint: 'Check the path.',
    cause,
  });
  expect(error).toBeInstanceOf(Error);
  expect(error).toMatchObject({
    name: 'LlamaVidError',
    code: 'MEDIA_NOT_FOUND',
    hint: 'Check the path.',
    cause,
  });
  expect(String(error)).toBe('LlamaVidError: no.mp4: no such file');
});

it('has no cause when none is given', () => {
  const error = new LlamaVidError('ABORTED', 'stopped');
  expect('cause' in error).toBe(false);
  expect(error.hint).toBeUndefined();
});

it('tells its own from others', () => {
  expect(LlamaVidError.is(new LlamaVidError('ABORTED', 'stopped'))).toBe(true);
  expect(LlamaVidError.is(new Error('other'))).toBe(false);
  expect(isErrorCode('NOT_A_CODE')).toBe(false);
});

it('has codes that differ', () => {
  expect(new Set(errorCodes).size).toBe(errorCodes.length);
});
