// Ask one question from Java 17, without a library: a job, and its tokens as they come.
// A stream that is cut goes on after its last event. Run it with: java SubmitAndWait.java

import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Iterator;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;

public class SubmitAndWait {
    static final String API = System.getenv().getOrDefault("TORPOR_API_URL", "http://127.0.0.1:8000");
    static final String KEY = System.getenv("TORPOR_API_KEY");
    static final HttpClient CLIENT = HttpClient.newHttpClient();
    static final String TEXT = "\"((?:[^\"\\\\]|\\\\.)*)\"";

    /** A call with the key, where there is one. */
    static HttpRequest.Builder call(String path) {
        var builder = HttpRequest.newBuilder(URI.create(API + path)).header("content-type", "application/json");
        return KEY == null ? builder : builder.header("authorization", "Bearer " + KEY);
    }

    static String send(HttpRequest request) throws IOException, InterruptedException {
        var answer = CLIENT.send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() >= 400) throw new IOException(answer.statusCode() + ": " + answer.body());
        return answer.body();
    }

    /** The first text with this name in a JSON document. A program of your own would use a JSON library. */
    static String first(String json, String name) {
        Matcher found = Pattern.compile("\"" + name + "\"\\s*:\\s*" + TEXT).matcher(json);
        return found.find() ? plain(found.group(1)) : "";
    }

    /** JSON text without its escapes. */
    static String plain(String text) {
        var out = new StringBuilder();
        for (int at = 0; at < text.length(); at++) {
            char letter = text.charAt(at);
            if (letter != '\\') {
                out.append(letter);
                continue;
            }
            letter = text.charAt(++at);
            switch (letter) {
                case 'n' -> out.append('\n');
                case 't' -> out.append('\t');
                case 'r' -> out.append('\r');
                case 'b' -> out.append('\b');
                case 'f' -> out.append('\f');
                case 'u' -> {
                    out.append((char) Integer.parseInt(text.substring(at + 1, at + 5), 16));
                    at += 4;
                }
                default -> out.append(letter);
            }
        }
        return out.toString();
    }

    /** Prints the tokens that come; the cursor of the last event, and whether the job has ended. */
    static boolean follow(String id, String[] cursor) throws IOException, InterruptedException {
        var request = call("/v1/jobs/" + id + "/events");
        if (!cursor[0].isEmpty()) request.header("last-event-id", cursor[0]);
        var answer = CLIENT.send(request.build(), HttpResponse.BodyHandlers.ofLines());
        if (answer.statusCode() >= 400) throw new IllegalStateException("the stream was refused: " + answer.statusCode());
        String event = "";
        try (Stream<String> lines = answer.body()) {
            for (Iterator<String> each = lines.iterator(); each.hasNext();) {
                String line = each.next();
                if (line.startsWith("id: ")) cursor[0] = line.substring(4);
                if (line.startsWith("event: ")) event = line.substring(7);
                if (line.startsWith("data: ") && event.equals("tokens")) {
                    Matcher found = Pattern.compile("\"content\"\\s*:\\s*" + TEXT).matcher(line);
                    while (found.find()) System.out.print(plain(found.group(1)));
                    System.out.flush();
                }
                if (event.equals("result")) return true;
            }
        }
        return false;
    }

    public static void main(String[] words) throws Exception {
        String question = words.length > 0 ? words[0] : "Why is the sky blue?";
        String quoted = question.replace("\\", "\\\\").replace("\"", "\\\"");
        String model = first(send(call("/v1/models").build()), "id");
        String line = """
            {"url": "/v1/chat/completions", "body": {"model": "%s", "max_tokens": 32,
             "messages": [{"role": "user", "content": "%s"}]}}""".formatted(model, quoted);
        String id = first(send(call("/v1/jobs").POST(HttpRequest.BodyPublishers.ofString(line)).build()), "id");
        System.err.println("accepted as " + id);
        String[] cursor = {""};
        boolean isOver = false;
        while (!isOver) {
            try {
                isOver = follow(id, cursor);
            } catch (IOException | java.io.UncheckedIOException cut) {
                Thread.sleep(500);
            }
        }
        System.out.println();
    }
}
