import { isErrorCode, LlamaVidError } from '@llamavid/errors';

/** `[CODE] message`, and advice on lines of its own: how the addon writes its errors. */
const CODED = /^\[([A-Z_]+)\] ([\s\S]*?)(?:\nhint: ([\s\S]*))?$/;

/** The addon's error as our class. What napi itself refuses is a wrong argument. */
function toLlamaVidError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof LlamaVidError) return error;
  const [, code, message, hint] = CODED.exec(error.message) ?? [];
  if (isErrorCode(code) && message !== undefined) return new LlamaVidError(code, message, { hint, cause: error });
  return new LlamaVidError('INVALID_ARGUMENT', error.message, { cause: error });
}

/** Calls the addon; its errors become `LlamaVidError`. */
export function callNative<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw toLlamaVidError(error);
  }
}

/** Waits for the addon; its errors become `LlamaVidError`. */
export async function callNativeAsync<T>(promise: Promise<T>): Promise<T> {
  try {
    return await promise;
  } catch (error) {
    throw toLlamaVidError(error);
  }
}
