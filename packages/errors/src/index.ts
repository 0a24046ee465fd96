/** Every code that an error can have, in the order of the Rust core's list. Names never change; new ones may come. */
export const errorCodes = [
  'MEDIA_NOT_FOUND',
  'MEDIA_UNREADABLE',
  'MEDIA_NO_VIDEO',
  'MEDIA_NO_AUDIO',
  'MEDIA_TRUNCATED',
  'MEDIA_TOO_LARGE',
  'MODEL_NOT_FOUND',
  'MODEL_FILE_MISSING',
  'MODEL_INVALID',
  'MODEL_UNSUPPORTED',
  'CONTEXT_OVERFLOW',
  'OUT_OF_MEMORY',
  'DEVICE_UNAVAILABLE',
  'STORE_INVALID',
  'STORE_LOCKED',
  'DATA_INVALID',
  'TRAINING_DIVERGED',
  'DISK_FULL',
  'HUB_ERROR',
  'INVALID_ARGUMENT',
  'HANDLE_CLOSED',
  'ABORTED',
  'INTERNAL',
] as const;

/** What went wrong, for programs. */
export type ErrorCode = (typeof errorCodes)[number];

/** What an error carries besides its code and message. */
export interface LlamaVidErrorOptions {
  /** What to do about it, for people. */
  hint?: string | undefined;
  /** The error behind it. */
  cause?: unknown;
}

/** Any failure of LLaMA-VID's packages: act on `code`, show `message` and `hint`. */
export class LlamaVidError extends Error {
  override readonly name = 'LlamaVidError';
  readonly code: ErrorCode;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, options: LlamaVidErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.hint = options.hint;
  }

  /** Whether `value` is such an error, also one of another copy of this package. */
  static is(value: unknown): value is LlamaVidError {
    return (
      value instanceof Error && value.name === 'LlamaVidError' && isErrorCode((value as LlamaVidError).code)
    );
  }
}

/** Whether `value` is one of the codes. */
export function isErrorCode(value: unknown): value is ErrorCode {
  return errorCodes.some((code) => code === value);
}
