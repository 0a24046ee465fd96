import { isErrorCode, LlamaVidError } from '@llamavid/errors';

/** How the addon writes an error: a code, a message, and on a last line a hint. */
const WRITTEN = /^\[([A-Z_]+)\] (.*?)(?:\nhint: (.*))?$/s;

/** Calls the addon; what it throws becomes a `LlamaVidError`. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw toLlamaVidError(error);
  }
}

/** Awaits the addon; what it rejects with becomes a `LlamaVidError`. A function is called here, so that it may throw too. */
export async function callNativeAsync<T>(work: Promise<T> | (() => Promise<T>)): Promise<T> {
  try {
    return await (typeof work === 'function' ? work() : work);
  } catch (error) {
    throw toLlamaVidError(error);
  }
}

function toLlamaVidError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof LlamaVidError) return error;
  const [, code, message = '', hint] = WRITTEN.exec(error.message) ?? [];
  if (code !== undefined) {
    return new LlamaVidError(isErrorCode(code) ? code : 'INTERNAL', message, { hint, cause: error });
  }
  // The addon's bindings check types before our code runs: `InvalidArg`, `NumberExpected`, ….
  const status = (error as NodeJS.ErrnoException).code;
  const isArgument = error instanceof TypeError || status === 'InvalidArg' || status?.endsWith('Expected');
  return new LlamaVidError(isArgument ? 'INVALID_ARGUMENT' : 'INTERNAL', error.message, { cause: error });
}
