import { unlessAborted } from './shared-work.js';

/** Lets so many work at once, in the order in which they came. */
export class Turns {
  #taken = 0;
  #waiting: (() => void)[] = [];

  /** Resolves when fewer than `most` work. Give the turn back in any case. */
  async take(most: number, signal?: AbortSignal): Promise<void> {
    while (this.#taken >= most) {
      await unlessAborted(new Promise<void>((wake) => this.#waiting.push(wake)), signal);
    }
    this.#taken += 1;
  }

  give(): void {
    this.#taken -= 1;
    // All of them: the first in line may have given up.
    for (const wake of this.#waiting.splice(0)) wake();
  }
}
