package gateway;

import java.time.Duration;
import java.util.List;
import org.springframework.boot.context.properties.ConfigurationProperties;
import org.springframework.boot.context.properties.bind.DefaultValue;

/**
 * @param urls where Latchkey is, each asked when the one before it can't be
 * @param timeout for all of them together
 * @param gatewayToken what Latchkey knows this gateway by; empty: nothing
 */
@ConfigurationProperties("latchkey")
public record LatchkeyProperties(
    List<String> urls, @DefaultValue("500ms") Duration timeout, @DefaultValue("") String gatewayToken) {}
