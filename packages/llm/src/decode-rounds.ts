import {
  type Cancellation,
  callNative,
  type GenerationPiece,
  Session as NativeSession,
  withCancellation,
} from '@llamavid/native';

interface Request {
  session: NativeSession;
  cancellation: Cancellation;
  check: () => void;
  begin: (piece: Promise<GenerationPiece | null>) => void;
  fail: (error: unknown) => void;
}

/**
 * Gathers the sessions of one model that wait for their next piece, so that they are decoded together: a token of each in one pass
 * over the weights. Who asks while a round runs is in the next one, which begins within a few tokens.
 */
export class DecodeRounds {
  #waiting: Request[] = [];
  #running = false;

  /** The next piece of a session; null after its last one. `check` throws where it is not wanted any more when its round begins. */
  next(
    session: NativeSession,
    check: () => void,
    signal: AbortSignal | undefined,
  ): Promise<GenerationPiece | null> {
    return withCancellation(signal, (cancellation) => {
      const piece = new Promise<GenerationPiece | null>((begin, fail) => {
        this.#waiting.push({ session, cancellation, check, begin, fail });
      });
      if (!this.#running) void this.#run();
      return piece;
    });
  }

  async #run(): Promise<void> {
    this.#running = true;
    while (this.#waiting.length > 0) {
      // Readers that got a piece of the last round ask for the next one before the event loop turns.
      await new Promise(setImmediate);
      const requests = this.#waiting.splice(0).filter(isWanted);
      try {
        const pieces = callNative(() => NativeSession.nextOfEach(requests));
        for (const [index, piece] of pieces.entries()) requests[index]?.begin(piece);
        await Promise.allSettled(pieces);
      } catch (error) {
        for (const { fail } of requests) fail(error);
      }
    }
    this.#running = false;
  }
}

function isWanted({ check, fail }: Request): boolean {
  try {
    check();
    return true;
  } catch (error) {
    fail(error);
    return false;
  }
}
