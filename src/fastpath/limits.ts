/** Node's own defaults allow 2³²−1 streams and wait for ever; one client could take all there is. */
export interface ListenerLimits {
  /** Connections at once; more are closed unanswered. */
  maxConnections: number;
  /** HTTP/2 streams at once on a connection; more wait, or are refused. */
  maxConcurrentStreams: number;
  /** Bytes of all headers of a request together: HTTP/1.1 answers 431, HTTP/2 resets the stream. */
  maxHeaderBytes: number;
  /** Headers of an HTTP/2 request, pseudo-headers included. */
  maxHeaderPairs: number;
  /** MiB that an HTTP/2 session may hold, what its streams have yet to send or read included. */
  maxSessionMemoryMiB: number;
  /** Invalid HTTP/2 frames after which a session is ended. */
  maxSessionInvalidFrames: number;
  /** Streams refused to one HTTP/2 session after which it is ended. */
  maxSessionRejectedStreams: number;
  /** Bytes of a message that is served without Connect; a larger one is left to `handler`. */
  maxMessageBytes: number;
  /** Time in which a connection must have said which protocol it speaks; with TLS, for its handshake. */
  firstBytesTimeoutMs: number;
  /** Time for the headers of an HTTP/1.1 request. */
  headersTimeoutMs: number;
  /**
   * Time for a whole request; for a client to take some of what it was sent; over HTTP/2 also for it to take all of an answer
   * that has ended. An answer itself may take for ever.
   */
  requestTimeoutMs: number;
  /** Time without a request (HTTP/1.1) or an open stream (HTTP/2) after which a connection is closed. */
  idleTimeoutMs: number;
  /** Silence after which TCP probes whether the peer is still there. */
  keepAliveProbeMs: number;
}

export const defaultListenerLimits: ListenerLimits = {
  maxConnections: 10_000,
  maxConcurrentStreams: 250,
  maxHeaderBytes: 16 * 1024,
  maxHeaderPairs: 128,
  maxSessionMemoryMiB: 4,
  maxSessionInvalidFrames: 100,
  maxSessionRejectedStreams: 1_000,
  maxMessageBytes: 64 * 1024,
  firstBytesTimeoutMs: 10_000,
  headersTimeoutMs: 10_000,
  requestTimeoutMs: 30_000,
  idleTimeoutMs: 120_000,
  keepAliveProbeMs: 60_000,
};
