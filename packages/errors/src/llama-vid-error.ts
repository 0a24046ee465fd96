/** What can go wrong, for programs. The names never change; new ones may come. */
export const errorCodes = [
  'MEDIA_NOT_FOUND',
  'MEDIA_UNREADABLE',
  'MEDIA_NO_VIDEO',
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
  'DISK_FULL',
  'HUB_ERROR',
  'INVALID_ARGUMENT',
  'HANDLE_CLOSED',
  'ABORTED',
  'INTERNAL',
] as const;

/** One of `errorCodes`. */
export type ErrorCode = (typeof errorCodes)[number];

/** Every error that the LLaMA-VID packages throw on purpose. */
export class LlamaVidError extends Error {
  override readonly name = 'LlamaVidError';
  /** For programs. */
  readonly code: ErrorCode;
  /** What to do about it, for people. */
  readonly hint?: string;

  /** `message` says what happened and where: path, key, shape, frame. */
  constructor(code: ErrorCode, message: string, options: { hint?: string | undefined; cause?: unknown } = {}) {
    super(message, 'cause' in options ? { cause: options.cause } : undefined);
    this.code = code;
    if (options.hint !== undefined) this.hint = options.hint;
  }
}
