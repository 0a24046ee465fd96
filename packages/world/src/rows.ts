/** What the lists beside the videos hold. */
import type { WorldQuestion } from '@llamavid/native';

/** A line of `qa.jsonl`. */
export interface QuestionRow {
  /** The file, from the folder of the list. */
  media: string;
  /** image, clip, multi, long or needle. */
  kind: string;
  /** The type of the question: colour, where, count, …. */
  type: string;
  question: string;
  answer: string;
  /** Whether training never uses this phrasing. */
  unseen_phrasing: boolean;
  /** Frames at one a second. */
  frames: number;
  /** The file of the subtitles, from the folder of the list. */
  subtitles: string | null;
  /** The seconds of the only scene that shows what is asked about, from and to; `null` where there is not one alone. */
  evidence: [from: number, to: number] | null;
}

/** A record of a training list in LLaVA's format. */
export interface TrainingRecord {
  id: string;
  image?: string;
  video?: string;
  conversations: [{ from: 'human'; value: string }, { from: 'gpt'; value: string }];
}

/** A file of the world with its questions. */
export interface AskedMedia {
  readonly name: string;
  readonly kind: string;
  readonly media: string;
  readonly subtitles: string | null;
  readonly frames: number;
  readonly questions: readonly WorldQuestion[];
}

export function questionRows(asked: AskedMedia): QuestionRow[] {
  const { media, kind, frames, subtitles } = asked;
  return asked.questions.map(({ type, question, answer, unseenPhrasing, evidence }) => ({
    media,
    kind,
    type,
    question,
    answer,
    unseen_phrasing: unseenPhrasing,
    frames,
    subtitles,
    evidence: evidence === undefined ? null : (evidence as [number, number]),
  }));
}

/** One record a question, without the phrasings that training must not use. */
export function trainingRecords(asked: AskedMedia): (TrainingRecord & { type: string })[] {
  const { name, kind, media } = asked;
  // A list has no place for subtitles, and without them these questions cannot be answered; needles are for measuring.
  if (kind === 'long' || kind === 'needle') return [];
  return asked.questions
    .map((question, place) => ({ ...question, place }))
    .filter(({ unseenPhrasing }) => !unseenPhrasing)
    .map(({ type, question, answer, place }) => ({
      id: `${name}-${place}`,
      ...(kind === 'image' ? { image: media } : { video: media }),
      conversations: [
        { from: 'human', value: `<image>\n${question}` },
        { from: 'gpt', value: answer },
      ],
      type,
    }));
}
