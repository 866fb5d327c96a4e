package gateway;

import io.netty.channel.ChannelOption;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Objects;
import java.util.regex.Pattern;
import org.springframework.cloud.gateway.filter.GatewayFilterChain;
import org.springframework.cloud.gateway.filter.GlobalFilter;
import org.springframework.cloud.gateway.route.Route;
import org.springframework.cloud.gateway.support.ServerWebExchangeUtils;
import org.springframework.core.Ordered;
import org.springframework.http.HttpHeaders;
import org.springframework.http.HttpStatusCode;
import org.springframework.http.client.reactive.ReactorClientHttpConnector;
import org.springframework.http.server.reactive.ServerHttpResponse;
import org.springframework.stereotype.Component;
import org.springframework.web.reactive.function.client.WebClient;
import org.springframework.web.server.ServerWebExchange;
import reactor.core.publisher.Flux;
import reactor.core.publisher.Mono;
import reactor.netty.http.client.HttpClient;

/**
 * Asks Latchkey's /v1/authorize about each request. Good: sets the identity headers, and forgets the credential. Anything
 * else: answers the client.
 */
@Component
class LatchkeyFilter implements GlobalFilter, Ordered {
  /** Where a key may stand: as LATCHKEY_GATEWAY_KEY_FROM has it. */
  private static final List<String> CREDENTIALS = List.of("authorization", "x-api-key");
  private static final List<String> IDENTITY =
      List.of("x-latchkey-user", "x-latchkey-key-id", "x-latchkey-scopes", "x-latchkey-name");
  /** What only Latchkey may say, in every spelling that a program behind might read as the same. */
  private static final Pattern FORGED = Pattern.compile("^x[^a-z0-9]latchkey.*");
  private static final List<String> TO_CLIENT =
      List.of("www-authenticate", "retry-after", "cache-control", "content-type");
  /** In every denial of Latchkey's: what has it not, nor is a 200, is not its word. */
  private static final String DENIAL = "x-latchkey-denial";
  /** Routes are matched against the path as it was sent: with these, a route and its scopes could be passed by. */
  private static final Pattern ODD_PATH =
      Pattern.compile("//|(^|/)\\.{1,2}(/|$)|%2f|%5c|%2e", Pattern.CASE_INSENSITIVE);
  private static final List<String> KEPT_HOPS = List.of("close", "keep-alive", "upgrade");
  private static final Pattern BEARER = Pattern.compile("^\\s*bearer(\\s.*)?$", Pattern.CASE_INSENSITIVE);
  /** What Latchkey says of a key takes up to 20 KiB of headers. */
  private static final int MAX_HEADER_BYTES = 32 * 1024;

  private final List<WebClient> latchkeys;
  private final Duration timeout;
  private final String gatewayToken;

  LatchkeyFilter(LatchkeyProperties properties) {
    timeout = properties.timeout();
    gatewayToken = properties.gatewayToken();
    HttpClient client = HttpClient.create()
        .option(ChannelOption.CONNECT_TIMEOUT_MILLIS, (int) timeout.toMillis())
        .httpResponseDecoder(decoder -> decoder.maxHeaderSize(MAX_HEADER_BYTES));
    latchkeys = properties.urls().stream()
        .map(url -> WebClient.builder().baseUrl(url).clientConnector(new ReactorClientHttpConnector(client)).build())
        .toList();
  }

  @Override
  public int getOrder() {
    return Ordered.HIGHEST_PRECEDENCE + 10;
  }

  @Override
  public Mono<Void> filter(ServerWebExchange exchange, GatewayFilterChain chain) {
    if (ODD_PATH.matcher(exchange.getRequest().getURI().getRawPath()).find()) {
      exchange.getResponse().setStatusCode(HttpStatusCode.valueOf(400));
      return exchange.getResponse().setComplete();
    }
    return Flux.fromIterable(latchkeys)
        .concatMap(latchkey -> ask(latchkey, exchange).onErrorComplete(), 1)
        .next()
        .timeout(timeout)
        .onErrorComplete()
        .defaultIfEmpty(Answer.UNAVAILABLE)
        .flatMap(answer -> answer.status() == 200
            ? chain.filter(proven(exchange, answer.headers()))
            : refuse(exchange.getResponse(), answer));
  }

  /** Empty: what came is not its word. */
  private Mono<Answer> ask(WebClient latchkey, ServerWebExchange exchange) {
    HttpHeaders came = exchange.getRequest().getHeaders();
    Route route = exchange.getAttribute(ServerWebExchangeUtils.GATEWAY_ROUTE_ATTR);
    Object scopes = route == null ? null : route.getMetadata().get("latchkey-scopes");
    return latchkey.get().uri("/v1/authorize")
        .headers(asked -> {
          // Each value as it came, so that two are seen as two.
          for (String name : CREDENTIALS) for (String value : came.getOrEmpty(name)) asked.add(name, value);
          if (scopes != null) asked.set("x-latchkey-required-scopes", scopes.toString());
          if (!gatewayToken.isEmpty()) asked.set("x-latchkey-gateway-token", gatewayToken);
          asked.set("x-original-uri", exchange.getRequest().getURI().toASCIIString());
        })
        .exchangeToMono(answer -> answer.bodyToMono(byte[].class).defaultIfEmpty(new byte[0])
            .map(body -> new Answer(answer.statusCode().value(), answer.headers().asHttpHeaders(), body)))
        .filter(Answer::isItsWord);
  }

  private static ServerWebExchange proven(ServerWebExchange exchange, HttpHeaders answered) {
    return exchange.mutate().request(request -> request.headers(headers -> {
      for (String name : List.copyOf(headers.headerNames()))
        if (FORGED.matcher(name.toLowerCase(Locale.ROOT)).matches()) headers.remove(name);
      for (String name : IDENTITY) headers.set(name, answered.getFirst(name));
      // What a client names in `Connection` is taken off what is sent on: our headers too. So nothing but these may stand there.
      List<String> hops = headers.getOrEmpty("connection").stream()
          .flatMap(value -> Arrays.stream(value.toLowerCase(Locale.ROOT).split("[ ,]+")))
          .filter(KEPT_HOPS::contains).toList();
      if (hops.isEmpty()) headers.remove("connection");
      else headers.set("connection", String.join(", ", hops));
      // A Bearer credential ends here; any other scheme goes on to the application.
      headers.remove("x-api-key");
      if (headers.getOrEmpty("authorization").stream().anyMatch(value -> BEARER.matcher(value).matches()))
        headers.remove("authorization");
    })).build();
  }

  private static Mono<Void> refuse(ServerHttpResponse response, Answer answer) {
    response.setStatusCode(HttpStatusCode.valueOf(answer.status()));
    for (String name : TO_CLIENT)
      if (answer.headers().getFirst(name) != null) response.getHeaders().set(name, answer.headers().getFirst(name));
    return response.writeWith(Mono.just(response.bufferFactory().wrap(answer.body())));
  }

  private record Answer(int status, HttpHeaders headers, byte[] body) {
    static final Answer UNAVAILABLE = new Answer(503, new HttpHeaders(),
        "{\"reason\":\"UNAVAILABLE\",\"message\":\"The API key could not be checked. Try again.\"}"
            .getBytes(StandardCharsets.UTF_8));

    static {
      UNAVAILABLE.headers.set("content-type", "application/json");
      UNAVAILABLE.headers.set("cache-control", "no-store");
      UNAVAILABLE.headers.set("retry-after", "1");
    }

    boolean isItsWord() {
      if (status != 200) return headers.getFirst(DENIAL) != null;
      return IDENTITY.stream().map(headers::getFirst).allMatch(Objects::nonNull);
    }
  }
}
