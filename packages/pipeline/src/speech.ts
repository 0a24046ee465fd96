import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import { checkSubtitles, type Subtitle } from '@llamavid/llm';

export interface SpeechOptions {
  /**
   * Folder of a Whisper model, or `none`. With one, `subtitles: 'auto'` hears what is said where nothing is written. Needs the package
   * `@llamavid/speech`. Default: what `LLAMAVID_SPEECH_MODEL` says, else none.
   */
  speechModel?: string | undefined;
  /** Called while speech is written down, with the seconds that are done and all. */
  onSpeech?: ((doneSeconds: number, totalSeconds: number) => void) | undefined;
}

/** What is said in a video. */
export interface Speech {
  model: string;
  /** The language's code, where the model tells it. */
  language?: string;
  subtitles: readonly Subtitle[];
  notes: string[];
}

/** The Whisper model that options or the environment name. */
export function speechModelOf({ speechModel }: SpeechOptions): string | undefined {
  const path = speechModel ?? process.env['LLAMAVID_SPEECH_MODEL'];
  return path === '' || path === 'none' ? undefined : path;
}

/** Writes down what is said in a video or sound file. */
export async function hear(
  path: string,
  model: string,
  { onSpeech, signal }: SpeechOptions & { signal?: AbortSignal | undefined },
): Promise<Speech> {
  const { SpeechModel } = await importSpeech();
  using loaded = await SpeechModel.load(model, { signal });
  const onProgress = ({ done, total }: { done: number; total: number }) => onSpeech?.(done, total);
  const heard = await loaded.transcribe(path, { signal, onProgress });
  const { subtitles, notes } = checkSubtitles(heard.subtitles);
  return {
    model,
    ...(heard.language !== undefined && { language: heard.language }),
    subtitles,
    notes: [...heard.notes, ...notes],
  };
}

/** The package is optional: only who wants speech installs it. */
async function importSpeech(): Promise<typeof import('@llamavid/speech')> {
  try {
    return await import('@llamavid/speech');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    throw new LlamaVidError(
      'INVALID_ARGUMENT',
      'speech was to be written down, but the package @llamavid/speech is not installed',
      { hint: 'npm install @llamavid/speech, or ask without a speech model.', cause: error },
    );
  }
}
