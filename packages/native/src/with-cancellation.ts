import { LlamaVidError } from '@llamavid/errors';
import { callNativeAsync } from './call-native.js';
import { Cancellation } from './handles.js';

/**
 * Starts `work` with a flag that `signal` raises, and awaits it. With an aborted signal it rejects with `ABORTED`, whose cause is
 * the signal's reason.
 */
export async function withCancellation<T>(
  signal: AbortSignal | undefined,
  work: (cancellation: Cancellation) => Promise<T>,
): Promise<T> {
  const aborted = () => new LlamaVidError('ABORTED', 'the work was cancelled', { cause: signal?.reason });
  if (signal?.aborted) throw aborted();
  const cancellation = new Cancellation();
  const cancel = () => cancellation.cancel();
  signal?.addEventListener('abort', cancel, { once: true });
  try {
    return await callNativeAsync(() => work(cancellation));
  } catch (error) {
    if (signal?.aborted && error instanceof LlamaVidError && error.code === 'ABORTED') throw aborted();
    throw error;
  } finally {
    signal?.removeEventListener('abort', cancel);
  }
}
