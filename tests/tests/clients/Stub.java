// Looks names up as the JVM does: `Stub TIMES NAME ...` prints a line for each lookup.
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.security.Security;
import java.util.StringJoiner;

public class Stub {
    public static void main(String[] asked) {
        // It keeps what it found for 30 s, and what it did not find for 10 s.
        Security.setProperty("networkaddress.cache.ttl", "0");
        Security.setProperty("networkaddress.cache.negative.ttl", "0");
        for (int i = 0; i + 1 < asked.length; i += 2) {
            for (int times = Integer.parseInt(asked[i]); times > 0; times--) {
                System.out.println(lookUp(asked[i + 1]));
            }
        }
    }

    static String lookUp(String name) {
        StringJoiner line = new StringJoiner(" ");
        try {
            for (InetAddress address : InetAddress.getAllByName(name)) {
                line.add(address.getHostAddress());
            }
            return line.toString();
        } catch (UnknownHostException error) {
            // The JVM says "Temporary failure in name resolution" of a server that fails.
            return error.getMessage().contains("Temporary") ? "failed: " + error.getMessage() : "missing";
        }
    }
}
