import { LowrankError } from '../errors.ts';
import type { Message } from '../types.ts';
import type { Span } from './template_engine.ts';
import { RenderCrash, renderIsolated } from './template_host.ts';
import type { RenderOutcome, RenderReply, RenderRequest, RenderResult } from './template_process.ts';

/** One conversation may take this long, in milliseconds. */
const DEADLINE = 1000;
/** A render may write this many characters more than its conversation has. */
const OUTPUT_LIMIT = 1 << 20;

export interface Conversation {
  messages: readonly Message[];
  tools?: unknown[];
  /** Only answers from this message on are supervised; default 0. */
  supervisedFrom?: number;
}

export interface RenderOptions {
  addGenerationPrompt?: boolean;
  /** More variables for the template, such as enable_thinking. */
  variables?: Record<string, unknown>;
}

export interface RenderedConversation {
  text: string;
  /** Characters that the assistant is to learn, as [start, end) in UTF-16 units. */
  spans: Span[];
}

/** A chat template with the special tokens it may name. */
export class ChatTemplate {
  readonly source: string;
  readonly #specials: Record<string, string>;
  readonly #endTokens: string[];
  readonly #specialTokens: string[];

  constructor(
    source: string,
    tokens: {
      /** bos_token, eos_token, …: what the template knows by name. */
      named: Record<string, string>;
      /** Texts of the tokens that end generation. */
      endTokens: string[];
      specialTokens: string[];
    },
  ) {
    this.source = source;
    this.#specials = tokens.named;
    this.#endTokens = tokens.endTokens;
    this.#specialTokens = tokens.specialTokens;
  }

  /** The conversation's text. Throws INVALID_TEMPLATE when the template fails, runs longer than a second or writes without end. */
  async render(conversation: Conversation, options: RenderOptions = {}): Promise<string> {
    const [result] = await this.#run([conversation], options, false);
    return accepted(result as RenderOutcome).text;
  }

  /**
   * Texts of many conversations with what the assistant is to learn in each: the template's own {% generation %} blocks, else derived
   * from where its answers stand; `spans: false` leaves that out. A conversation that fails gives its error in place of its text.
   */
  async renderForTraining(
    conversations: readonly Conversation[],
    options: RenderOptions & { spans?: boolean } = {},
  ): Promise<(RenderedConversation | LowrankError)[]> {
    const results = await this.#run(conversations, options, options.spans ?? true);
    return results.map((result) => ('error' in result ? templateError(result.error) : result));
  }

  #run(conversations: readonly Conversation[], options: RenderOptions, spans: boolean): Promise<RenderOutcome[]> {
    const request: RenderRequest = {
      source: this.source,
      jobs: conversations.map(({ messages, tools, supervisedFrom }) => ({ messages: [...messages], tools, supervisedFrom })),
      addGenerationPrompt: options.addGenerationPrompt ?? false,
      variables: { ...this.#specials, ...options.variables },
      spans: spans ? { endTokens: this.#endTokens, specialTokens: this.#specialTokens } : undefined,
      outputLimit: OUTPUT_LIMIT,
      deadline: DEADLINE,
    };
    return rendered(request);
  }
}

/** Rejects when the template cannot be used at all. */
async function rendered(request: RenderRequest): Promise<RenderOutcome[]> {
  let reply: RenderReply;
  try {
    reply = await renderIsolated(request);
  } catch (error) {
    if (error instanceof RenderCrash) throw templateError(error.message);
    throw new LowrankError('INVALID_DATASET', `a conversation holds a value that is no data: ${String(error)}`, { cause: error });
  }
  if ('failure' in reply) throw templateError(reply.failure);
  return reply.outcomes;
}

function accepted(result: RenderOutcome): RenderResult {
  if ('error' in result) throw templateError(result.error);
  return result;
}

function templateError(reason: string): LowrankError {
  return new LowrankError('INVALID_TEMPLATE', `the chat template failed: ${reason}`);
}
