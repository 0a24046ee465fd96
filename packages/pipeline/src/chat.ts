import { LlamaVidError } from '@llamavid/errors';
import type { ConversationTurn } from '@llamavid/llm';
import { type Answer, type AskOptions, answerQuestion, type Context, type Stages } from './answer.js';
import type { Clip } from './clip.js';

export interface SendOptions {
  /** Stops this answer; the chat goes on without the turn. */
  signal?: AbortSignal | undefined;
}

/**
 * Questions that follow from each other. Each turn makes the videos' tokens anew for its own question and
 * puts them in front of it; earlier questions stay in the prompt as text alone.
 */
export class Chat {
  readonly #stages: Stages;
  readonly #options: AskOptions;
  readonly #clips: Clip[];
  #history: { question: string; answer: string }[] = [];
  #answering = false;

  /** @internal Made by `LlamaVid.chat`. */
  constructor(stages: Stages, clips: readonly Clip[], options: AskOptions) {
    this.#stages = stages;
    this.#clips = [...clips];
    this.#options = options;
  }

  /** What the next question is about, in order. */
  get media(): readonly Clip[] {
    return this.#clips;
  }

  /** Questions and their whole answers. */
  get history(): readonly Required<ConversationTurn>[] {
    return this.#history;
  }

  /** Puts one more video or picture in front of the coming questions. */
  add(clip: Clip): void {
    this.#clips.push(clip);
  }

  /** Forgets all turns; the videos stay. */
  reset(): void {
    this.#history = [];
  }

  /**
   * Asks the next question. The turn joins the history when its answer is whole; one that was stopped leaves
   * no trace. One answer at a time: a question whose turn comes while another is being answered is refused.
   */
  send(question: string, options: SendOptions = {}): Answer {
    const signal = options.signal ?? this.#options.signal;
    return answerQuestion(this.#stages, () => this.#begin(question), question, { ...this.#options, signal });
  }

  #begin(question: string): Context {
    if (this.#answering) {
      throw new LlamaVidError(
        'INVALID_ARGUMENT',
        'the chat is still answering the question before this one',
        {
          hint: 'Read that answer to its end, or stop it with its signal.',
        },
      );
    }
    this.#answering = true;
    const history = this.#history;
    const onEnd: Context['onEnd'] = (result) => {
      this.#answering = false;
      if (result !== undefined) history.push({ question, answer: result.text });
    };
    // A place that the model wrote itself has no visual tokens.
    const told = history.map(({ question, answer }) => ({
      question,
      answer: answer.replaceAll('<image>', ''),
    }));
    return { clips: [...this.#clips], history: told, onEnd };
  }
}
