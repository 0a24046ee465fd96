import {
  callNative,
  conversationStop,
  conversationTemplates as nativeTemplates,
  renderConversation,
} from '@llamavid/native';

/**
 * One question of a conversation and, but for the newest one, its answer. `<image>` stands where visual
 * tokens go.
 */
export interface ConversationTurn {
  question: string;
  answer?: string;
}

/**
 * A conversation template: the system text, the names of the two sides and what stands between their turns.
 */
export class Conversation {
  readonly name: string;
  /** The text that ends an answer. */
  readonly stop: string;

  /** @internal Made by `conversation`. */
  constructor(name: string, stop: string) {
    this.name = name;
    this.stop = stop;
  }

  /** The prompt of all turns, open at the end when the last one has no answer yet. */
  render(turns: readonly ConversationTurn[]): string {
    return callNative(() => renderConversation(this.name, [...turns]));
  }
}

/**
 * The template of this name, for example `llava_v1` (the reference's chat) or `vicuna_v1` (its training and
 * benchmarks).
 */
export function conversation(name: string): Conversation {
  return new Conversation(
    name,
    callNative(() => conversationStop(name)),
  );
}

/** The names that `conversation` knows. */
export function conversationTemplates(): string[] {
  return callNative(() => nativeTemplates());
}
