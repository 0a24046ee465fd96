import { LlamaVidError } from '@llamavid/errors';

/** Writes something below `path`; what the system refuses becomes a `LlamaVidError`. */
export function writing<T>(path: string, write: () => T): T {
  try {
    return write();
  } catch (error) {
    if (error instanceof LlamaVidError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOSPC' || code === 'EDQUOT') {
      throw new LlamaVidError('DISK_FULL', `${path}: the disk is full`, {
        hint: 'Make room and resume the run: its last checkpoint is complete.',
        cause: error,
      });
    }
    throw new LlamaVidError('INVALID_ARGUMENT', `${path} cannot be written: ${message}`, {
      hint: 'Give an output folder that can be written to.',
      cause: error,
    });
  }
}
