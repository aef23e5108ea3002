// Types that several rooms share. What belongs to one room lives there.

/** One turn of a conversation, as chat templates take it. */
export interface Message {
  role: string;
  content: string | null | { type: string; text?: string }[];
  [key: string]: unknown;
}

/** Token ids and labels of one training row; labels are unshifted, -100 is ignored. */
export interface TokenRow {
  inputIds: Int32Array;
  labels: Int32Array;
}
