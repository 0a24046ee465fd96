import { describe, expect, it } from 'vitest';
import { errorCodes, LlamaVidError } from '../src/index.js';

describe('LlamaVidError', () => {
  it('has a code, a hint and a cause', () => {
    const cause = new Error('disk');
    const error = new LlamaVidError('MODEL_INVALID', 'model/config.json: no width', { hint: 'Download it again.', cause });
    expect(error).toBeInstanceOf(Error);
    expect(error).toMatchObject({ name: 'LlamaVidError', code: 'MODEL_INVALID', hint: 'Download it again.', cause });
    expect(String(error)).toBe('LlamaVidError: model/config.json: no width');
  });

  it('has neither hint nor cause when none is given', () => {
    const error = new LlamaVidError('ABORTED', 'cancelled');
    expect('hint' in error || 'cause' in error).toBe(false);
  });

  it('has codes that differ', () => {
    expect(new Set(errorCodes).size).toBe(errorCodes.length);
  });
});
