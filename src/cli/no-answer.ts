const ADVICE = "Start the service (npx latchkey serve), or say where it is by LATCHKEY_URL or --url.";

const TLS_FAULTS: [RegExp, string][] = [
  [
    /SELF_SIGNED|UNABLE_TO_VERIFY|UNABLE_TO_GET_ISSUER|self.signed|unable to (?:verify|get)/i,
    "its certificate is signed by nobody who is trusted here; set LATCHKEY_CA_FILE to the certificate of who signed it",
  ],
  [/CERT_HAS_EXPIRED|certificate has expired/i, "its certificate has expired"],
  [
    /ALTNAME_INVALID|altnames/i,
    "its certificate is for other names; say the service's own name in LATCHKEY_URL or --url",
  ],
];

/** Why a call got no answer from Latchkey, with the URL and what to do. `error`: of `fetch`, or a ConnectError without a reason. */
export function whyNoAnswer(url: string, error: unknown): string {
  const { name, rawMessage, message, cause } = error as Error & { rawMessage?: string };
  const { code, syscall, message: deeper } = (cause ?? error) as NodeJS.ErrnoException;
  const said = firstLine(rawMessage ?? deeper ?? message);
  const untrusted = TLS_FAULTS.find(([fault]) => fault.test(`${code} ${said}`));
  if (untrusted !== undefined) return `${url}: ${untrusted[1]} (${code ?? said}).`;
  if (syscall !== undefined) return `${url} does not answer (${code}). ${ADVICE}`;
  if (name === "TimeoutError" || /timed out/.test(said)) return `${url} does not answer in time. ${ADVICE}`;
  const scheme = url.startsWith("https:") ? "http" : "https";
  return `${url} does not answer as Latchkey does (${code ?? said}). Is the port right, and is it ${scheme}? ${ADVICE}`;
}

function firstLine(text: string): string {
  return text.split("\n")[0]!.slice(0, 160);
}
