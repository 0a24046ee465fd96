import { LlamaVidError } from '@llamavid/errors';
import type { ConversationTurn } from '@llamavid/llm';
import {
  type Answer,
  type AskOptions,
  answerQuestion,
  type Context,
  KeptPrefix,
  type Stages,
} from './answer.js';
import type { Clip } from './clip.js';

export interface ChatOptions extends AskOptions {
  /**
   * `exact` (default): each turn makes the videos' tokens for its own question, as the reference does, and reads them all.
   * `keep-visual-prefix`: the tokens made for the first question stay in front of it for the whole chat, and a later turn reads only its
   * own words. That is many times faster for a long video, and context tokens then know the first question alone: ask about
   * something else in a new chat. Holds the memory of keys and values until `close`.
   */
  followUps?: 'exact' | 'keep-visual-prefix' | undefined;
}

export interface SendOptions {
  /** Stops this answer; the chat goes on without the turn. */
  signal?: AbortSignal | undefined;
}

/**
 * Questions that follow from each other. Each turn makes the videos' tokens anew for its own question and
 * puts them in front of it; earlier questions stay in the prompt as text alone. `followUps` has another way.
 */
export class Chat implements Disposable {
  readonly #stages: Stages;
  readonly #options: AskOptions;
  readonly #clips: Clip[];
  readonly #kept: KeptPrefix | undefined;
  #history: { question: string; answer: string }[] = [];
  #answering = false;

  /** @internal Made by `LlamaVid.chat`. */
  constructor(stages: Stages, clips: readonly Clip[], options: ChatOptions) {
    const { followUps = 'exact', ...others } = options;
    this.#stages = stages;
    this.#clips = [...clips];
    this.#options = others;
    this.#kept = followUps === 'exact' ? undefined : new KeptPrefix();
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
    // What was kept shows less.
    this.#kept?.[Symbol.dispose]();
  }

  /** Forgets all turns; the videos stay. */
  reset(): void {
    this.#history = [];
    this.#kept?.[Symbol.dispose]();
  }

  /** Frees what was kept of earlier turns. Closing twice does nothing. */
  close(): void {
    this.#kept?.[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.close();
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
    return { clips: [...this.#clips], history: told, kept: this.#kept, onEnd };
  }
}
