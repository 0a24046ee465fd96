/** Errors about a file, each with the file's name and what to do. */
import { LlamaVidError } from '@llamavid/errors';

const CONVERT =
  'Check that the file plays elsewhere; if it does, convert it: ffmpeg -i FILE -c:v libx264 out.mp4';

export function notFound(name: string): LlamaVidError {
  return new LlamaVidError('MEDIA_NOT_FOUND', `${name} does not exist.`, {
    hint: 'Check the path; relative paths start at the current folder.',
  });
}

export function unreadable(name: string, why: string, hint: string = CONVERT): LlamaVidError {
  return new LlamaVidError('MEDIA_UNREADABLE', `${name} cannot be read: ${why}.`, { hint });
}

export function noVideo(name: string, why: string): LlamaVidError {
  return new LlamaVidError('MEDIA_NO_VIDEO', `${name} has no video: ${why}.`, {
    hint: 'Give a file with a video stream, or a picture.',
  });
}

export function noAudio(name: string, why: string): LlamaVidError {
  return new LlamaVidError('MEDIA_NO_AUDIO', `${name} has no sound: ${why}.`, {
    hint: 'Give a file with a sound track.',
  });
}

export function truncated(name: string, why: string): LlamaVidError {
  return new LlamaVidError('MEDIA_TRUNCATED', `${name} is damaged or cut off: ${why}.`, {
    hint: 'Copy or download the file again; without `strict` what is there is read, if it can be.',
  });
}

export function tooLarge(name: string, what: string, hint: string): LlamaVidError {
  return new LlamaVidError('MEDIA_TOO_LARGE', `${name} is too large: ${what}.`, { hint });
}

export function closed(name: string): LlamaVidError {
  return new LlamaVidError('HANDLE_CLOSED', `${name} is closed.`, { hint: 'Open it again.' });
}

export function aborted(name: string, cause: unknown): LlamaVidError {
  return new LlamaVidError('ABORTED', `Reading ${name} was aborted.`, { cause });
}

export function writingAborted(name: string, cause: unknown): LlamaVidError {
  return new LlamaVidError('ABORTED', `Writing ${name} was aborted.`, { cause });
}

/** What Node says when a file cannot be made or renamed. */
export function unwritable(name: string, cause: unknown): LlamaVidError {
  const { code, message } = cause as NodeJS.ErrnoException;
  if (code === 'ENOSPC' || code === 'EDQUOT') return diskFull(name, cause);
  if (code === 'ENOENT') {
    return new LlamaVidError('MEDIA_NOT_FOUND', `${name} cannot be written: there is no such folder.`, {
      hint: 'Make the folder first.',
      cause,
    });
  }
  return new LlamaVidError('INVALID_ARGUMENT', `${name} cannot be written: ${message}.`, {
    hint: 'Choose a path that this user may write to.',
    cause,
  });
}

export function diskFull(name: string, cause?: unknown): LlamaVidError {
  return new LlamaVidError('DISK_FULL', `There is no room for ${name}.`, {
    hint: 'Free some space, or write to another disk.',
    cause,
  });
}

export function invalidRange(
  name: string,
  sampling: { start?: number | undefined; end?: number | undefined },
  seconds: number,
): LlamaVidError {
  const { start = 0, end } = sampling;
  const range = `from ${start} s${end === undefined ? '' : ` to ${end} s`}`;
  const ending = seconds > 0 ? `: it ends at ${seconds} s` : '';
  return new LlamaVidError('INVALID_ARGUMENT', `${name} has no frame ${range}${ending}.`, {
    hint: 'Choose a start before the end of the video.',
  });
}
