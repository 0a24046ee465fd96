// Requests: the token goes where it belongs and nowhere else, silence ends a connection, refusals become typed errors.
import { setTimeout as sleep } from 'node:timers/promises';
import { LlamaVidError } from '@llamavid/errors';
import type { HubSettings } from './settings.js';

export interface Retries {
  /** Failures in a row, without a new byte between them, before giving up. */
  readonly attempts: number;
  /** Wait behind the first failure; it doubles with each further one. */
  readonly delayMs: number;
}

/** What a request is for, as the user would say it. */
export interface Asked {
  /** Repository of the hub; absent for a plain address. */
  readonly repository?: string | undefined;
  readonly revision?: string | undefined;
  /** File that is wanted. */
  readonly file?: string | undefined;
}

/** A failure that may be over in a moment: worth another attempt. */
export class Passing extends Error {
  readonly waitMs: number;
  /** Whether something arrived before it. */
  progressed = false;

  constructor(message: string, { cause, waitMs = 0 }: { cause?: unknown; waitMs?: number } = {}) {
    super(message, { cause });
    this.waitMs = waitMs;
  }
}

export const LARGEST_ANSWER = 64 << 20;
const LONGEST_WAIT_MS = 60_000;

export class Connection {
  readonly settings: HubSettings;
  /** Ends every request and wait. */
  readonly signal: AbortSignal;
  readonly #retries: Retries;

  constructor(settings: HubSettings, signal: AbortSignal, retries: Retries) {
    this.settings = settings;
    this.signal = signal;
    this.#retries = retries;
  }

  /**
   * One request, redirects followed. `use` takes the answer and calls `alive` with each piece of it that arrives.
   *
   * @throws `Passing` when it is worth another attempt; `HUB_ERROR`, `MODEL_NOT_FOUND`, `ABORTED`.
   */
  async get<T>(
    url: URL,
    headers: Record<string, string>,
    asked: Asked,
    use: (response: Response, alive: () => void) => Promise<T>,
    also: AbortSignal[] = [],
  ): Promise<T> {
    const silence = new AbortController();
    const timer = setTimeout(() => silence.abort(), this.settings.silenceMs);
    const { token, endpoint } = this.settings;
    const authorization: Record<string, string> =
      token !== undefined && url.origin === new URL(endpoint).origin
        ? { authorization: `Bearer ${token}` }
        : {};
    try {
      // `fetch` drops the authorization where a redirect leaves the origin.
      const response = await fetch(url, {
        headers: { 'user-agent': 'llamavid', ...headers, ...authorization },
        signal: AbortSignal.any([this.signal, silence.signal, ...also]),
      });
      if (!response.ok) {
        const text = response.headers.get('x-error-message') ?? '';
        await response.body?.cancel();
        throw this.#refusal(url, response, text, asked);
      }
      return await use(response, () => timer.refresh());
    } catch (error) {
      throwIfAborted(this.signal);
      if (error instanceof Passing || LlamaVidError.is(error)) throw error;
      if (silence.signal.aborted) {
        throw new Passing(`${url.host} was silent for ${this.settings.silenceMs / 1000} s`, { cause: error });
      }
      throw new Passing(`${url.host}: ${reasonOf(error)}`, { cause: error });
    } finally {
      clearTimeout(timer);
    }
  }

  /** Does `work` until it succeeds, fails for good, or failed too often in a row. */
  async persist<T>(work: () => Promise<T>): Promise<T> {
    for (let failures = 0; ; ) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof Passing)) throw error;
        failures = error.progressed ? 1 : failures + 1;
        if (failures >= this.#retries.attempts) {
          const often = failures === 1 ? '' : `, ${failures} times in a row`;
          throw new LlamaVidError('HUB_ERROR', `${error.message}${often}`, {
            hint: 'Look at the network and at HF_ENDPOINT, then run the command again: it resumes. HF_HUB_OFFLINE=1 takes what was fetched before.',
            cause: error,
          });
        }
        const wait = Math.max(error.waitMs, this.#retries.delayMs * 2 ** (failures - 1));
        await sleep(Math.min(wait, LONGEST_WAIT_MS), undefined, { signal: this.signal }).catch(() => {});
        throwIfAborted(this.signal);
      }
    }
  }

  #refusal(url: URL, response: Response, text: string, asked: Asked): Error {
    const { status, headers } = response;
    const answer = `answered ${status}${text === '' ? '' : ` (${printable(text)})`}`;
    if (status === 408 || status === 429 || status >= 500) {
      const seconds = Number(headers.get('retry-after') ?? 0);
      return new Passing(`${url.host} ${answer}`, { waitMs: seconds > 0 ? seconds * 1000 : 0 });
    }
    const { repository, revision, file } = asked;
    if (repository === undefined) {
      return new LlamaVidError('HUB_ERROR', `${url.href} ${answer}`, {
        hint: 'The file may have moved. A catalogue of your own can name another address for it.',
      });
    }
    // Where the hub sends us for a file, an address is good for a while only; the hub gives a new one.
    if (response.redirected && new URL(response.url).origin !== url.origin) {
      return new Passing(`${new URL(response.url).host} ${answer}`);
    }
    const code = headers.get('x-error-code');
    const page = `${this.settings.endpoint}/${repository}`;
    const known = this.settings.token !== undefined;
    if (code === 'GatedRepo') {
      return new LlamaVidError('HUB_ERROR', `${repository} is gated: ${url.host} ${answer}`, {
        hint: `Accept its conditions at ${page}${known ? ' with the account of your token' : ', then set HF_TOKEN'}.`,
      });
    }
    if (status === 401 && code !== 'RepoNotFound') {
      return new LlamaVidError('HUB_ERROR', `${repository}: ${url.host} ${answer}`, {
        hint: known
          ? `The hub does not take the token: make a new one at ${this.settings.endpoint}/settings/tokens and set HF_TOKEN.`
          : `Set HF_TOKEN to a token of ${this.settings.endpoint}/settings/tokens.`,
      });
    }
    if (code === 'RevisionNotFound') {
      return new LlamaVidError('MODEL_NOT_FOUND', `${repository} has no revision ${revision}`, {
        hint: `Its branches and tags are listed at ${page}/tree/main.`,
      });
    }
    if (status === 403) {
      return new LlamaVidError('HUB_ERROR', `${repository}: ${url.host} ${answer}`, {
        hint: `Look at ${page}: the token may lack the right to read it, or the repository is closed.`,
      });
    }
    if (file !== undefined && (code === 'EntryNotFound' || (status === 404 && code === null))) {
      return new LlamaVidError(
        'HUB_ERROR',
        `${repository} lists ${file} and does not have it: ${url.host} ${answer}`,
        {
          hint: 'Run the command again; if that does not help, the repository is damaged.',
        },
      );
    }
    if (status === 401 || status === 404) {
      return new LlamaVidError('MODEL_NOT_FOUND', `${url.host} has no model ${repository}`, {
        hint: `Look at the spelling; \`llamavid pull --list\` names the published models.${known ? '' : ' For a private one set HF_TOKEN.'}`,
      });
    }
    return new LlamaVidError('HUB_ERROR', `${repository}: ${url.host} ${answer}`, {
      hint: 'Is HF_ENDPOINT the address of a hub?',
    });
  }
}

export function throwIfAborted(signal: AbortSignal): void {
  if (signal.aborted) {
    throw new LlamaVidError('ABORTED', 'pulling was cancelled; run the command again to resume', {
      cause: signal.reason,
    });
  }
}

/** `fetch` hides the reason in the cause. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error;
  const inner = cause instanceof Error ? cause.message || (cause as NodeJS.ErrnoException).code : undefined;
  return printable(inner ? `${message}: ${inner}` : message);
}

/** Text of a server, made fit for one line of a terminal. */
function printable(text: string): string {
  return text.replace(/\p{Cc}+/gu, ' ').slice(0, 200);
}
